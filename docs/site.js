// What the theme leaves out for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("pre, .table-wrapper, .math").forEach((box) => (box.tabIndex = 0)); // they scroll
  document.querySelectorAll("p.caption[role=heading]").forEach((title) => title.setAttribute("aria-level", "2"));
  document.querySelectorAll("dt.sig dl, dt.sig dd").forEach((part) => part.setAttribute("role", "none")); // parameters
  document.querySelectorAll("aside").forEach((side, i) => side.setAttribute("aria-label", ["Pages", "On this page"][i]));
});
