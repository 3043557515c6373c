"use strict";
// Charts: plotly figures in the page's colours, drawn when they come into view.
(() => {
  const { el } = seif;
  const figures = new Map(); // plot element → figure
  const config = { responsive: true, displayModeBar: false };

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  /** The value with the colours of the dark theme where it names those of the light one. */
  function recolored(value, dark) {
    if (typeof value === "string") return dark[value] || value;
    if (Array.isArray(value))
      return typeof value[0] === "number" ? value : value.map((each) => recolored(each, dark));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, recolored(v, dark)]));
    return value;
  }

  /** A trace whose texts plotly, which reads some markup, shows as they are. */
  function plain(trace) {
    const escape = (text) => (typeof text === "string" ? text.replaceAll("&", "&amp;").replaceAll("<", "&lt;") : text);
    const own = { ...trace, name: escape(trace.name) };
    for (const key of ["x", "y", "text"]) if (Array.isArray(own[key])) own[key] = own[key].map(escape);
    return own;
  }

  function axis(own) {
    const line = color("--line");
    return {
      gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, fixedrange: touch(),
      tickfont: { color: color("--muted") }, ...own,
      title: { text: own?.title?.text, font: { size: 12, color: color("--muted") }, standoff: 8 },
    };
  }

  function touch() {
    return matchMedia("(pointer: coarse)").matches;
  }

  function themed(figure) {
    const isDark = document.documentElement.dataset.theme === "dark";
    const { data, layout } = isDark ? recolored(figure, seif.data.dark) : figure;
    const clear = "rgba(0,0,0,0)";
    const text = color("--text");
    return [data.map(plain), {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
      paper_bgcolor: clear, plot_bgcolor: clear, margin: { l: 44, r: 10, t: 16, b: 36 },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: text } },
      dragmode: touch() ? false : "zoom",
      ...layout, showlegend: false, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    }];
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "400px" });

  /** The names of what is drawn, each a button that hides and shows it. */
  function legend(plot, { data }) {
    const named = new Map(); // name → the numbers of its traces
    data.forEach((trace, i) => {
      const name = trace.name?.replace(/, band$/, "");
      named.set(name, [...(named.get(name) || []), i]);
    });
    return el("ul", { class: "legend", "aria-label": "Series" }, [...named].map(([name, traces]) => {
      const { line, marker, fillcolor } = data[traces[traces.length - 1]];
      const swatch = el("span", { class: "swatch" });
      const shown = fillcolor || line?.color || marker?.color;
      swatch.dataset.light = Array.isArray(shown) ? shown[shown.length - 1] : shown;
      const button = el("button", { type: "button", "aria-pressed": "true" }, swatch, name);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!on));
        for (const i of traces) data[i].visible = !on;
        draw(plot);
      });
      return el("li", null, button);
    }));
  }

  function paintSwatches() {
    const isDark = document.documentElement.dataset.theme === "dark";
    for (const swatch of document.querySelectorAll(".swatch"))
      swatch.style.background = (isDark && seif.data.dark[swatch.dataset.light]) || swatch.dataset.light;
  }

  function draw(plot) {
    Plotly.react(plot, ...themed(figures.get(plot)), config);
    plot.dataset.drawn = "yes";
  }

  /** Draws what was drawn once more, in the colours of now. */
  seif.redraw = () => {
    paintSwatches();
    for (const plot of figures.keys()) if (plot.dataset.drawn) draw(plot);
  };

  /** The figure's numbers, for those who do not see it. */
  function numbers({ data, layout }) {
    const traces = data.filter((trace) => trace.hoverinfo !== "skip");
    if (traces[0]?.type === "heatmap") {
      const [trace] = traces;
      return [["", ...trace.x], trace.y.map((name, i) => [name, ...trace.text[i]])];
    }
    const sideways = traces[0]?.orientation === "h";
    const [label, value] = sideways ? ["y", "x"] : ["x", "y"];
    const rows = new Map();
    traces.forEach((trace, column) => {
      (trace[label] || []).forEach((name, i) => {
        if (!rows.has(name)) rows.set(name, [name, ...traces.map(() => null)]);
        rows.get(name)[column + 1] = trace[value][i];
      });
    });
    const head = layout[`${label}axis`]?.title?.text || "";
    const names = traces.map((trace) => trace.name || "value");
    return [[head, ...names], [...rows.values()].filter((row) => row.slice(1).some((cell) => cell !== null))];
  }

  /** A chart's element: caption, plot, and its numbers as a table on demand. */
  seif.chart = (block) => {
    const { figure } = block;
    const plot = el("div", { class: "plot", role: "img", "aria-label": `${block.title}. ${block.alt}` });
    plot.style.height = `${figure.layout.height}px`;
    figures.set(plot, figure);
    seen.observe(plot);
    const details = el("details", null, el("summary", null, "Numbers", el("span", { class: "unseen" }, ` of ${block.title}`)));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const save = () => Plotly.downloadImage(plot, { format: "png", scale: 2, filename: block.id });
      details.append(seif.table(...numbers(figure), block.title), el("button", { type: "button", onclick: save }, "Save as image"));
    });
    return el("figure", { class: `card chart ${block.width}`, id: block.id },
      el("figcaption", null, el("h3", null, block.title), block.note ? el("p", { class: "note" }, block.note) : null),
      figure.layout.showlegend ? legend(plot, figure) : null, plot, details);
  };
})();
