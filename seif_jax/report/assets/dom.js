"use strict";
// What the other scripts share. Text enters the document as text nodes only, never as markup.
window.seif = {
  /** An element; children are elements or texts, null is left out. */
  el(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== null && value !== undefined && value !== false)
        element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  },

  /** A cell as text: whole numbers entire, others in three significant digits. */
  format(value) {
    if (value === null || value === undefined || value === "") return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
    if (Math.abs(value) < 0.001) return value.toExponential(1);
    return Number(value.toPrecision(3)).toString();
  },

  /** A table that a click or key on a column's header sorts; long ones are shortened at first. */
  table(columns, rows, caption, first = 25) {
    const { el, format } = seif;
    const numeric = columns.map((_, i) =>
      rows.some((row) => typeof row[i] === "number") && rows.every((row) => typeof row[i] !== "string"));
    const body = el("tbody");
    let shown = rows;
    let limit = first;
    const more = el("button", { type: "button", class: "more", onclick: () => { limit = Infinity; fill(); } });
    function fill() {
      body.replaceChildren(...shown.slice(0, limit).map((row) =>
        el("tr", null, row.map((value, i) => el("td", { class: numeric[i] ? "number" : "text" }, format(value))))));
      more.hidden = shown.length <= limit;
      more.textContent = `Show all ${shown.length.toLocaleString("en-US")} rows`;
    }
    const heads = columns.map((name, i) => {
      const button = el("button", { type: "button", onclick: () => sort(i) }, name);
      return el("th", { scope: "col", class: numeric[i] ? "number" : null }, button);
    });
    function sort(i) {
      const up = heads[i].getAttribute("aria-sort") === "descending" || (!numeric[i] && !heads[i].ariaSort);
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[i].setAttribute("aria-sort", up ? "ascending" : "descending");
      const rank = (value) => (value === null || value === undefined ? null : value);
      shown = [...rows].sort((a, b) => {
        const [x, y] = [rank(a[i]), rank(b[i])];
        if (x === null || y === null) return (x === null) - (y === null);
        const order = numeric[i] ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
        return up ? order : -order;
      });
      fill();
    }
    fill();
    const table = el("table", null, el("caption", { class: "unseen" }, caption),
      el("thead", null, el("tr", null, heads)), body);
    const region = { class: "scroll", role: "region", tabindex: "0", "aria-label": caption };
    return el("div", null, el("div", region, table), more);
  },
};
