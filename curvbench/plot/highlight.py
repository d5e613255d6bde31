"""Highlight on hover: the lines and points of a method that the pointer is at stay, all others fade."""

from __future__ import annotations

# For a page that shows figures of plotly; it may run more than once. Plotly puts the data of a trace on its elements.
SCRIPT = """(() => {
  if (window.curvbenchHighlights) return;
  window.curvbenchHighlights = true;
  const name = trace => (trace.name || trace.legendgroup || "").replace(/ on .*/, "");
  const show = (chart, chosen) => chart.querySelectorAll(".scatterlayer .trace").forEach(line => {
    const trace = line.__data__ && line.__data__[0] && line.__data__[0].trace;
    line.style.opacity = !chosen || !trace || name(trace) === chosen ? "" : 0.15;
  });
  document.addEventListener("mouseover", event => {
    const chart = event.target.closest && event.target.closest(".js-plotly-plot");
    if (!chart || !chart.on || chart.curvbenchListens) return;
    chart.curvbenchListens = true;
    chart.on("plotly_hover", ({points}) => points[0].data.type === "scatter" && show(chart, name(points[0].data)));
    chart.on("plotly_unhover", () => show(chart, ""));
  });
})();"""
