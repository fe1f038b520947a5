// Draws each figure when it comes near the view, in the reader's colours, and anew when these change. The first one that
// does starts plotly, which the page holds as text: a browser reads and runs it longer than all the rest of the page.
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
  const startPlotly = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("held").textContent;
    document.head.append(script); // runs at once
  };
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
    startPlotly();
    plot.replaceChildren(); // the picture that stood there
    draw(plot);
  };
  // One at a time, so that the page answers in between; what has been scrolled past by then waits for the next time.
  const waiting = new Set();
  const drawNext = () => {
    const [plot] = waiting;
    if (!plot) return;
    waiting.delete(plot);
    drawOnce(plot);
    setTimeout(drawNext);
  };
  const near = new IntersectionObserver(
    (entries) => {
      const before = waiting.size;
      for (const { isIntersecting, target } of entries) waiting[isIntersecting ? "add" : "delete"](target);
      if (!before) setTimeout(drawNext);
    },
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => near.observe(plot));
  night.addEventListener("change", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => plots.forEach(drawOnce));
}
