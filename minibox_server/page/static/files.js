// The files of an image, one directory at a time. The first look reads each layer once, so it waits to be asked for.

import { ask } from "./api.js";
import { button, hasNoFocus, make, replace, table } from "./dom.js";
import { tell } from "./telling.js";
import { bytes, count } from "./words.js";

const READING = "Reading… the first look at an image reads each of its layers once.";

/** Return the panel for one manifest of an image; `signal` ends what it asks. */
export function filesPanel(image, platform, signal) {
  const place = make("div", { class: "files" });
  const open = async (path) => {
    replace(place, make("p", { class: "quiet", role: "status" }, READING));
    try {
      const directory = await ask("images/files", { query: { image, path, platform }, signal });
      // Another manifest of the image is looked at meanwhile, or another image has its name.
      if (!place.isConnected) return;
      const way = wayTo(path, open);
      replace(place, way, tableOf(directory, path, open));
      // The button that was pressed is gone; who has gone on to something else stays there.
      if (hasNoFocus()) way.lastChild.focus();
      tell(`${path}: ${count(directory.entries.length, "entry", "entries")}.`);
    } catch (error) {
      if (signal.aborted) return;
      const back = button("Back to the root", () => open("/"));
      replace(place, make("p", { class: "failed", role: "alert" }, error.message), back);
      if (hasNoFocus()) back.focus();
    }
  };
  replace(place, button("Look into it", () => open("/")));
  return make("section", { class: "card", "aria-labelledby": "files" }, make("h2", { id: "files" }, "Files"), place);
}

function wayTo(path, open) {
  const names = path.split("/").filter(Boolean);
  const steps = names.map((name, at) => button(name, () => open(`/${names.slice(0, at + 1).join("/")}`)));
  return make("nav", { class: "path", "aria-label": "Way to this directory" },
    button("/", () => open("/"), { "aria-label": "the root" }),
    steps.flatMap((each, at) => (at ? ["/", each] : [each])));
}

function tableOf({ entries, complete }, path, open) {
  const below = (name) => `${path === "/" ? "" : path}/${name}`;
  const rows = entries.map((entry) => [
    entry.kind === "directory"
      ? button(`${entry.name}/`, () => open(below(entry.name)))
      : make("code", {}, entry.name, entry.link_target && ` → ${entry.link_target}`),
    entry.kind === "file" ? bytes(entry.size_bytes) : "",
    make("code", {}, `${entry.mode} ${entry.uid}:${entry.gid}`),
    entry.layer ? `layer ${entry.layer}` : entry.kind === "directory" ? "" : entry.kind,
  ]);
  if (!rows.length) return make("p", { class: "quiet" }, "Nothing is in it.");
  return make("div", {}, table(`Files in ${path}`, ["Name", "Size", "Mode and owner", "From"], rows),
    !complete && make("p", { class: "quiet" }, "More than this are not shown."));
}
