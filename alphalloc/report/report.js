/* Draws the figures of a report with plotly, in the reader's colours, and the spectrum that is chosen. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displayModeBar: false };

  function colours() {
    return dark.matches
      ? { ink: "#e6edf3", soft: "#9aa4af", grid: "#30363d", paper: "#161b22" }
      : { ink: "#1f2328", soft: "#59636e", grid: "#d8dee4", paper: "#ffffff" };
  }

  function themed(layout) {
    const { ink, soft, grid, paper } = colours();
    const axis = (of) => ({ gridcolor: grid, linecolor: soft, tickfont: { color: soft }, ...of });
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      hoverlabel: { ...layout.hoverlabel, bgcolor: paper, bordercolor: soft, font: { color: ink } },
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      dragmode: false,
    };
  }

  function inked(traces) {
    const { ink } = colours();
    return traces.map((trace) => (trace.error_y ? { ...trace, error_y: { ...trace.error_y, color: ink } } : trace));
  }

  const drawn = new Map();
  function paint(element, figure) {
    Plotly.react(element, inked(figure.data), themed(figure.layout), config);
  }

  function draw(element, figure, label) {
    element.hidden = false;
    drawn.set(element, figure);
    paint(element, figure);
    if (label) element.setAttribute("aria-label", label);
  }

  function spectrum(item) {
    const { pattern, colours: [first, second] } = data.spectra;
    const step = (item.high - item.low) / item.counts.length;
    const x = item.counts.map((_, i) => 10 ** (item.low + step * (i + 0.5)));
    const hover = { hovertemplate: "λ %{x:.4g}<br>density %{y:.4g}<extra></extra>" };
    const traces = [{
      type: "scatter", mode: "lines+markers", name: "eigenvalues", x, y: item.density,
      line: { color: first, width: 2 }, marker: { color: first, size: 5 }, ...hover,
    }];
    if (item.tail) {
      traces.push({ type: "scatter", mode: "lines", ...item.tail, line: { color: second, width: 2.5 }, ...hover });
    }
    const shapes = item.marks.map(([place]) => (
      { type: "line", x0: place, x1: place, y0: 0, y1: 1, yref: "paper", line: { color: "#7d8590", width: 1.5, dash: "dash" } }
    ));
    const annotations = item.marks.map(([place, text], i) => (
      { x: Math.log10(place), y: 1 - 0.07 * i, yref: "paper", xanchor: "left", showarrow: false, text }
    ));
    return { data: traces, layout: { ...pattern.layout, shapes, annotations, showlegend: true } };
  }

  function row(cells) {
    const made = document.createElement("tr");
    for (const [i, text] of cells.entries()) {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.textContent = text;
      made.append(cell);
    }
    return made;
  }

  function show(item) {
    document.getElementById("spectrum-words").textContent = item.words;
    draw(document.getElementById("spectrum-plot"), spectrum(item), item.words);
    const step = (item.high - item.low) / item.counts.length;
    const edge = (i) => (10 ** (item.low + step * i)).toPrecision(4);
    const rows = item.counts.map((count, i) => row([
      edge(i), edge(i + 1), String(count), item.density[i] === null ? "–" : item.density[i].toPrecision(4),
    ]));
    document.getElementById("spectrum-rows").replaceChildren(...rows);
  }

  document.documentElement.classList.add("live");
  for (const element of document.querySelectorAll("[data-figure]")) {
    draw(element, data.figures[element.dataset.figure]);
  }
  const choice = document.getElementById("spectrum-choice");
  if (choice) {
    const chosen = () => show(data.spectra.items[Number(choice.value)]);
    choice.addEventListener("change", chosen);
    chosen();
  }
  dark.addEventListener("change", () => {
    for (const [element, figure] of drawn) paint(element, figure);
  });
})();
