// In Locust's own page: shows the live page inside its Hotfix tab, above the table that Locust draws there.
"use strict";
(() => {
  const frame = Object.assign(document.createElement("iframe"), { title: "Hotfix, live", src: "about:blank" });
  frame.id = "hotfix-frame";
  Object.assign(frame.style, { display: "none", width: "100%", border: "0", height: "1150px" });
  // Locust's own table of the same swaps is what is left where this script does not run.
  const style = document.createElement("style");
  style.textContent = ".hotfix-tab #root > div { min-height: 0 !important; } .hotfix-tab #root .MuiTableContainer-root { display: none; }";
  document.head.append(style);
  const source = document.currentScript.dataset.page;
  function follow() {
    const root = document.getElementById("root");
    const here = new URLSearchParams(location.search).get("tab") === "hotfix" && root?.querySelector("[role=tab]");
    if (here && !frame.isConnected) root.after(frame);
    if (here && frame.src === "about:blank") frame.src = source;
    document.body.classList.toggle("hotfix-tab", Boolean(here));
    frame.style.display = here ? "block" : "none";
    if (here && frame.contentDocument?.body) frame.style.height = frame.contentDocument.documentElement.scrollHeight + "px";
  }
  setInterval(follow, 300);
})();
