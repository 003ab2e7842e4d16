// The page: which view is shown for which address, and nothing of what the views are.

import { onMissingToken } from "./api.js";
import { showWork } from "./cards.js";
import { askForToken } from "./dialogs.js";
import { replace } from "./dom.js";
import { keepFresh, refresh } from "./holdings.js";
import { imageView } from "./image.js";
import { imagesView } from "./images.js";
import { spaceView } from "./space.js";
import { isWorking, onWork } from "./work.js";

const main = document.getElementById("main");
let endView = () => {};

function show(isFirst) {
  const [, asked, rest] = location.hash.match(/^#\/([a-z]+)(?:\/(.*))?$/) ?? [null, "images", null];
  const views = { images: imagesView, space: spaceView, image: () => imageView(decode(rest ?? "")) };
  // Every object has more than was put into it.
  const name = Object.hasOwn(views, asked) ? asked : "images";
  const { view, end } = views[name]();
  endView();
  endView = end ?? (() => {});
  replace(main, view);
  const heading = main.querySelector("h1");
  document.title = `${heading.textContent} · minibox`;
  for (const link of document.querySelectorAll("nav a")) {
    const isCurrent = link.getAttribute("href") === `#/${name === "image" ? "images" : name}`;
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // Who comes by a link hears where they are; who has just opened the page is at its top.
  if (!isFirst) {
    heading.focus();
    window.scrollTo(0, 0);
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

onMissingToken(askForToken);
onWork((work) => showWork(document.getElementById("work"), work));
window.addEventListener("hashchange", () => show(false));
window.addEventListener("beforeunload", (event) => { if (isWorking()) event.preventDefault(); });
// A file that is dropped beside its place must not take the page's place.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
show(true);
await refresh();
keepFresh();
