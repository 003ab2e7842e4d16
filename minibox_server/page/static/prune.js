// Prune: the plan is shown first, with the reason and the bytes of each thing, and only then may it be done.

import { ask, follow, newest } from "./api.js";
import * as dialogs from "./dialogs.js";
import { button, hasNoFocus, make, more, replace, table } from "./dom.js";
import { refresh } from "./holdings.js";
import { finish } from "./pull.js";
import { start } from "./work.js";
import { bytes, count } from "./words.js";

const MOST_ROWS = 200;

/** Return the panel. */
export function prunePanel() {
  const failed = make("p", { class: "failed", role: "alert", hidden: true });
  const show = button("Show the plan", async () => {
    failed.hidden = true;
    show.disabled = true;
    try {
      await prune(() => show.isConnected);
    } catch (error) {
      failed.textContent = error.message;
      failed.hidden = false;
    } finally {
      show.disabled = false;
      if (hasNoFocus()) show.focus();
    }
  }, { class: "main" });
  return make("section", { class: "card", "aria-labelledby": "prune" },
    make("h2", { id: "prune" }, "Prune"),
    make("p", {}, "Removes what no image needs and nobody is working on. First it says what that would be."),
    failed, show);
}

async function prune(isWanted) {
  const place = make("div", {});
  const showAnew = () => showPlan().catch((error) => replace(place, make("p", { class: "failed" }, error.message)));
  const withCache = make("input", { type: "checkbox", onchange: showAnew });
  const beginAsking = newest();
  let isPlanned = false;
  const showPlan = async () => {
    const isNewest = beginAsking();
    isPlanned = false;
    try {
      const query = { dry_run: true, build_cache: withCache.checked };
      const plan = await ask("system/prune", { method: "POST", query });
      if (!isNewest()) return;
      replace(place, planOf(plan));
      isPlanned = true;
    } catch (error) {
      if (isNewest()) throw error;
    }
  };
  await showPlan();
  // Who has gone elsewhere meanwhile is not asked there.
  if (!isWanted()) return;
  const agreed = await dialogs.ask({
    title: "What a prune would remove",
    content: [place, make("label", { class: "check" }, withCache, " and unpacked layers that nothing uses")],
    yes: "Prune",
    isDangerous: true,
    confirm: async () => {
      if (!isPlanned) throw new Error("The plan of this is not shown yet.");
      return { build_cache: withCache.checked };
    },
  });
  if (agreed === null) return;
  start("Prune", async (work) => {
    const report = await finish(follow("system/prune", { query: agreed, signal: work.signal }), work);
    await refresh();
    const freed = report.bytes_freed + (report.build_cache_bytes_freed ?? 0);
    const { errors } = report;
    const problems = errors.length ? ` ${count(errors.length, "thing")} could not be removed: ${errors[0]}` : "";
    return `${bytes(freed)} freed, ${count(report.blobs_removed, "blob")} removed.${problems}`;
  }, "Cancelled. What is gone is gone, and the next prune removes the rest.");
}

function planOf(report) {
  const plan = report.plan ?? [];
  const sum = plan.reduce((total, each) => total + each.size_bytes, 0);
  if (!plan.length) return [make("p", {}, "Nothing: every blob is needed."), ...remarks(report)];
  const rows = [...plan].sort((one, other) => other.size_bytes - one.size_bytes).slice(0, MOST_ROWS).map((each) => [
    [each.kind, " ", make("code", { title: each.path }, shortPath(each.path))],
    bytes(each.size_bytes),
    each.reason,
  ]);
  return [
    make("p", {}, make("b", {}, bytes(sum)), ` in ${count(plan.length, "thing")}`),
    table("The plan", ["What", "Size", "Why"], rows),
    more(plan, MOST_ROWS),
    ...remarks(report),
  ];
}

function remarks(report) {
  return [["It stays, though nothing needs it", report.kept], ["Not known", report.errors]]
    .filter(([, sentences]) => sentences?.length)
    .map(([title, sentences]) => make("div", { class: "remark" },
      make("h3", {}, title), make("ul", {}, sentences.map((each) => make("li", {}, each)))));
}

function shortPath(path) {
  return path.replace(/^blobs\/sha\d+\//, "").replace(/[0-9a-f]{40,}/, (hex) => hex.slice(0, 12));
}
