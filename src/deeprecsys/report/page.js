// Paints the figures in the page's own colours, and again when light turns to dark.
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw() {
  const ink = colour("--ink"), grid = colour("--line");
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickcolor: grid };
  FIGURES.forEach((figure, i) => {
    const layout = {
      ...figure.layout,
      xaxis: { ...axis, ...figure.layout.xaxis },
      yaxis: { ...axis, ...figure.layout.yaxis },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      autosize: true,
    };
    Plotly.react(`figure-${i}`, figure.data, layout, { displayModeBar: false, responsive: true });
  });
}

draw();
dark.addEventListener("change", draw);
addEventListener("beforeprint", () => document.querySelectorAll("details.best").forEach((d) => (d.open = true)));
