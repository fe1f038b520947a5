// Draws each figure when it comes near the view, in the reader's colours, and anew when these change.
"use strict";
{
  const night = matchMedia("(prefers-color-scheme: dark)");
  // Colours of a page in print -> those on a dark ground; the others can be told from either.
  const AT_NIGHT = [
    ['"white"', '"#161616"'], ['"black"', '"#e6e6e6"'], ["#000000", "#e6e6e6"], ["#444444", "#bbbbbb"],
    ["#2a3f5f", "#e6e6e6"], ["#EBF0F8", "#3a3a3a"], ["rgba(0, 0, 0, 0.08)", "rgba(255, 255, 255, 0.14)"],
    ["#0072b2", "#3d9be0"], ["#d55e00", "#f07f2f"],
  ];

  const plots = [...document.querySelectorAll(".plot")];
  const draw = (plot) => {
    let figure = document.getElementById(plot.id.replace("plot-", "data-")).textContent;
    if (night.matches) for (const [light, dark] of AT_NIGHT) figure = figure.replaceAll(light, dark);
    const { data, layout } = JSON.parse(figure);
    Plotly.react(plot, data, layout, { displaylogo: false, responsive: true });
  };
  const drawn = new Set();
  const drawOnce = (plot) => {
    if (drawn.has(plot)) return;
    drawn.add(plot);
    draw(plot);
  };
  const near = new IntersectionObserver(
    (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => drawOnce(one.target)),
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => near.observe(plot));
  night.addEventListener("change", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => plots.forEach(drawOnce));
}
