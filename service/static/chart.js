/* Bars over the layers, drawn as SVG: values, a second row as a stepped line, and ranges as whiskers. */
"use strict";

const CHART = { width: 760, height: 280, left: 44, right: 10, top: 28, bottom: 40 };

function svgElement(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Round values from `low` to `high`, about five. */
function roundTicks(low, high) {
  const raw = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((nice) => nice * power).find((one) => one >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i += 1) ticks.push(i * step);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/**
 * Return an <svg> of bars.
 * `values` and `labels` have one entry a layer; `others` ({ name, values }) is drawn as a stepped line; `ranges` are
 * [low, high] or null; `from` is where the axis begins; `summary` is what a screen reader says.
 */
function barChart({ labels, values, name, others, ranges, from = 0, summary }) {
  const { width, height, left, right, top, bottom } = CHART;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary });
  const second = others ? others.values : [];
  const known = [...values, ...second, ...(ranges || []).flatMap((one) => one || [])].filter((one) => one !== null);
  const highest = Math.max(from + 1e-9, ...known) ;
  const top_value = highest + (highest - from) * 0.06;
  const y = (value) => height - bottom - ((value - from) / (top_value - from)) * (height - bottom - top);
  const step = (width - left - right) / values.length;
  const base = height - bottom;

  const { ticks, digits } = roundTicks(from, top_value);
  for (const tick of ticks) {
    svg.append(svgElement("path", { class: "grid", d: `M${left} ${y(tick)}H${width - right}` }));
    svg.append(svgElement("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(digits)));
  }
  const every = Math.max(1, Math.ceil((Math.max(...labels.map((one) => one.length)) * 7 + 8) / step));
  labels.forEach((label, i) => {
    if (i % every) return;
    svg.append(svgElement("text", { x: left + step * (i + 0.5), y: base + 17, "text-anchor": "middle" }, label));
  });
  svg.append(svgElement("text", { class: "title", x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, "layer"));

  const gap = step > 4 ? Math.min(step * 0.18, 6) : 0;
  values.forEach((value, i) => {
    if (value === null) return;
    const bar = svgElement("rect", {
      class: "bar", "data-layer": i, "data-value": value, x: (left + step * i + gap / 2).toFixed(1),
      y: y(value).toFixed(1), width: (step - gap).toFixed(1), height: Math.max(0, base - y(value)).toFixed(1), rx: 1,
    });
    bar.append(svgElement("title", {}, `layer ${labels[i]}: ${value}`));
    svg.append(bar);
  });
  svg.append(svgElement("path", { class: "axis", d: `M${left} ${base}H${width - right}` }));
  if (others) {
    const path = second.map((value, i) => (
      value === null ? "" : `${i && second[i - 1] !== null ? "L" : "M"}${left + step * i} ${y(value)}H${left + step * (i + 1)}`
    ));
    svg.append(svgElement("path", { class: "mark", d: path.join("") }));
  }
  (ranges || []).forEach((range, i) => {
    if (!range || range[0] === range[1]) return;
    const x = left + step * (i + 0.5);
    svg.append(svgElement("path", { class: "whisker", d: `M${x - 3} ${y(range[1])}h6m-3 0V${y(range[0])}m-3 0h6` }));
  });

  svg.append(svgElement("rect", { class: "bar", x: left, y: 5, width: 10, height: 10, rx: 2 }));
  svg.append(svgElement("text", { class: "title", x: left + 16, y: 14 }, name));
  if (others) {
    const at = left + 40 + name.length * 7;
    svg.append(svgElement("path", { class: "mark", d: `M${at} 10h16` }));
    svg.append(svgElement("text", { class: "title", x: at + 22, y: 14 }, others.name));
  }
  return svg;
}
