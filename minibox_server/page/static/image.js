// The view of one image: what it is, how it was made, how it is run, and which files are in it.

import { ask, newest } from "./api.js";
import { removeImage, saveImage, tagImage } from "./actions.js";
import { button, facts, field, make, more, notice, redraw, replace } from "./dom.js";
import { filesPanel } from "./files.js";
import { holdings, onHoldings, usageOf } from "./holdings.js";
import { age, bytes, short } from "./words.js";

// An image may have tens of thousands of variables and labels; one that is run has some dozens.
const MOST_LINES = 1000;

/** Return the view of the image of this name, and what ends it. */
export function imageView(name) {
  const body = make("div", { class: "parted" }, make("p", { class: "quiet" }, "Asking the daemon…"));
  const controller = new AbortController();
  const { signal } = controller;
  const known = make("div", {});
  const actions = make("div", { class: "actions" });
  const overview = make("section", { class: "card", "aria-label": "Overview" }, known, actions);
  // What has not changed stays as it is, and so do the focus and the place in it.
  let seen = {};
  const differs = (part, value) => {
    const before = seen[part];
    seen[part] = JSON.stringify(value);
    return seen[part] !== before;
  };
  const draw = (image) => {
    if (differs("known", [image, usageOf(image)])) replace(known, factsOf(image));
    if (!differs("image", image)) return;
    replace(actions, actionsFor(name, image, signal));
    replace(body, overview, manifestsOf(name, image, signal));
  };
  const beginAsking = newest();
  const load = async () => {
    const isNewest = beginAsking();
    try {
      const image = await ask("images/inspect", { query: { image: name }, signal });
      if (!isNewest()) return;
      redraw(body, () => draw(image));
    } catch (error) {
      if (signal.aborted || !isNewest()) return;
      seen = {};
      redraw(body, () => replace(body, notice(error.message, load)));
    }
  };
  load();
  // Where the list is refused, nobody has heard of a change, and nobody who reads on is interrupted.
  const ends = onHoldings(() => { if (holdings.problem === null) load(); });
  return {
    view: [
      make("p", { class: "crumb" }, make("a", { href: "#/images" }, "All images")),
      make("h1", { tabindex: "-1" }, name),
      body,
    ],
    end: () => { ends(); controller.abort(); },
  };
}

function manifestsOf(name, image, signal) {
  const place = make("div", { class: "parted" });
  const runnable = image.manifests.filter((each) => !each.is_attestation);
  const show = (manifest) => replace(place, manifestParts(name, manifest, signal));
  const choice = make("select", { onchange: () => show(runnable[choice.value]) },
    runnable.map((each, number) => make("option", { value: number }, each.platform ?? short(each.digest))));
  if (runnable.length) show(runnable[0]);
  return [runnable.length > 1 && field("Platform", choice), place];
}

function factsOf(image) {
  const usage = usageOf(image);
  const shared = usage?.shared_bytes ? `${bytes(usage.shared_bytes)} of it, with other images` : "nothing";
  return facts(
    ["Size", bytes(image.size_bytes)],
    ["Shared", usage === null ? "not known" : shared],
    ["Platform", image.platform ?? (image.platforms ?? []).join(", ")],
    ["Made", image.created && [age(image.created), make("span", { class: "quiet" }, ` ${image.created}`)]],
    ["Digest", make("code", {}, image.digest)],
    ["Type", make("code", {}, image.media_type)],
    ["Annotations", pairs(image.annotations)],
    ["Damage", image.damaged ? "A document of this image cannot be read." : null]);
}

function actionsFor(name, image, signal) {
  const remove = async () => {
    // Who has gone elsewhere meanwhile stays there.
    if (await removeImage(image) && !signal.aborted) location.hash = "#/images";
  };
  const act = (label, does, properties = {}) => button(label, does, { "data-focus": label, ...properties });
  return [
    act("Download", () => saveImage(image)), act("Tag", () => tagImage(name)),
    act("Remove", remove, { class: "danger quiet" }),
  ];
}

function manifestParts(name, manifest, signal) {
  const { config } = manifest;
  return [
    config && section("How it runs", configFacts(config)),
    section(config ? "How it was made" : "What it holds",
      manifest.artifact_type && facts(["Artifact", make("code", {}, manifest.artifact_type)]),
      make("ol", { class: "steps" }, manifest.history.map(step))),
    config && filesPanel(name, manifest.platform, signal),
  ];
}

function section(title, ...content) {
  return make("section", { class: "card", "aria-label": title }, make("h2", {}, title), content);
}

function configFacts(config) {
  return facts(
    ["Entry point", config.entrypoint.length ? make("code", {}, JSON.stringify(config.entrypoint)) : null],
    ["Command", config.cmd.length ? make("code", {}, JSON.stringify(config.cmd)) : null],
    ["User", config.user],
    ["Folder", config.working_dir],
    ["Environment", lines(config.env)],
    ["Ports", lines(config.exposed_ports)],
    ["Volumes", lines(config.volumes)],
    ["Stop signal", config.stop_signal],
    ["Labels", pairs(config.labels)]);
}

function lines(values) {
  if (!values.length) return null;
  const shown = values.slice(0, MOST_LINES).flatMap((each) => [each, make("br")]);
  return make("code", {}, shown, more(values, MOST_LINES, "span"));
}

function pairs(values) {
  return lines(Object.entries(values).map(([key, value]) => `${key}=${value}`));
}

function step({ layer, created, created_by: command, comment }) {
  return make("li", { class: layer ? "" : "empty-step" },
    make("span", {}, make("code", {}, command || comment || "a layer"),
      make("small", {}, [layer && short(layer.digest), age(created)].filter(Boolean).join(" · "))),
    make("span", { class: "number" }, layer ? bytes(layer.size_bytes) : "no bytes"));
}
