// Sorting and filtering for tables that are complete without it; opens the folded table that a link leads into.
"use strict";
(() => {
  const LONG = 12; // rows; a longer table gets a filter
  const natural = new Intl.Collator("en", { numeric: true });
  const raised = "⁰¹²³⁴⁵⁶⁷⁸⁹";

  // The number that a cell begins with: "−0.015 [...]", "1,200", "1.2×10⁶", "< 0.001"; null where there is none.
  const number = (text) => {
    const plain = text.replaceAll("−", "-").replaceAll(",", "");
    const found = plain.match(/^[<>+]?\s*(-?\d+(?:\.\d+)?)(?:×10(⁻?)([⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/);
    if (!found) return null;
    const power = found[3] ? Number([...found[3]].map((sign) => raised.indexOf(sign)).join("")) : 0;
    return Number(found[1]) * 10 ** (found[2] ? -power : power);
  };

  const compare = (a, b, isNumeric, sign) => {
    if (!isNumeric) return sign * natural.compare(a, b);
    const [x, y] = [number(a), number(b)];
    if (x === null || y === null) return (x === null) - (y === null); // no value: last, either way
    return sign * (x - y);
  };

  const makeSortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" }[head.ariaSort] || "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next !== "none") head.ariaSort = next;
        const text = (row) => row.cells[column].textContent.trim();
        const keyed = original.map((row) => [text(row), row]);
        const sign = next === "descending" ? -1 : 1;
        const isNumeric = head.className === "r";
        if (next !== "none") keyed.sort((a, b) => compare(a[0], b[0], isNumeric, sign));
        body.append(...keyed.map(([, row]) => row));
      });
    });
  };

  const makeFilterable = (box, table) => {
    const rows = [...table.tBodies[0].rows];
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("output");
    label.className = "filter";
    input.type = "search";
    label.append("Filter ", input, " ", count);
    const show = () => {
      const words = input.value.toLowerCase().split(/\s+/);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.value = `${shown} of ${rows.length} rows`;
    };
    input.addEventListener("input", show);
    count.value = `${rows.length} rows`;
    box.before(label);
  };

  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") node.open = true;
    }
    if (target) target.scrollIntoView();
  };

  for (const box of document.querySelectorAll(".scroll")) {
    const table = box.querySelector("table");
    makeSortable(table);
    if (table.tBodies[0].rows.length > LONG) makeFilterable(box, table);
  }
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
})();
