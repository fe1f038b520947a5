// Sorts the table of trials by the head that is pressed, and shows the rows that have all words of the field.
"use strict";
for (const region of document.querySelectorAll(".trials")) {
  const table = region.querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const names = heads.map((head) => head.textContent.toLowerCase());

  const value = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    const text = dataset.value ?? textContent;
    if (text === "-") return null; // not known: last in either order
    return Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compared = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), "en", { numeric: true });
  };
  const sort = (column) => {
    const falling = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", falling ? "descending" : "ascending");
    rows.sort((a, b) => {
      const [one, other] = [value(a, column), value(b, column)];
      if (one === null || other === null) return (one === null) - (other === null);
      return falling ? compared(other, one) : compared(one, other);
    });
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, column) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });

  const [field, said] = region.previousElementSibling.querySelectorAll("input, output");
  const has = (row, word) => {
    const [name, wanted] = word.split("=");
    const column = wanted === undefined ? -1 : names.findIndex((head) => head.startsWith(name));
    if (column < 0) return row.textContent.toLowerCase().includes(word);
    const text = row.cells[column].textContent.toLowerCase();
    return text === wanted || text.split(" ").includes(wanted);
  };
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => { row.hidden = !words.every((word) => has(row, word)); });
    said.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} trials`;
  };
  field.addEventListener("input", filter);
  region.previousElementSibling.hidden = false;
  filter();
}
