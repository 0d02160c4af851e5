// One piece of long work: how far it is, what it reports, how it ended.

import { dialog, errorAlert } from "./dialog.js";
import { alert, bar, button, card, codeBlock, descriptions, h, icon, label, link, spinner, swap } from "./dom.js";
import { bytes, duration, moment, shell } from "./format.js";
import { failureOf, Progress, save } from "./works.js";

const PHASES = { copy: "copy", check: "check", write: "write" };

// The state of a work in a word.
export function workLabel(known) {
    if (known.state === "running")
        return label("Running", "info");
    if (known.state === "lost")
        return label("Interrupted", "danger");
    return known.status === 0 ? label("Done", "ok") : label(known.status > 128 ? "Stopped" : "Failed", known.status > 128 ? "warning" : "danger");
}

// A card with the bars of work that runs.
export function workBars(page, known) {
    const progress = page.works.progress.get(known.id) ?? new Progress();
    const { done, total } = progress.total;
    return card(
        null,
        h("div", { class: "vb-title" },
          h("h2", { class: "vb-work-title" }, known.title),
          link("Details", page.href("work", known.id), { id: `details-${known.id}`, "aria-label": `Details of ${known.title}` })),
        bar("Progress", done, total, total ? `${bytes(done)} of ${bytes(total)}` : "begins"),
        h("p", { class: "vb-quiet" }, progress.steps.at(-1)?.message ?? ""));
}

function diskBars(progress) {
    return [...progress.disks.values()].map(disk =>
        bar(`${disk.domain ? `${disk.domain}, ` : ""}${disk.dev}: ${PHASES[disk.phase] ?? disk.phase}`, disk.done_bytes, disk.total_bytes,
            `${bytes(disk.done_bytes)} of ${bytes(disk.total_bytes)}`));
}

const KINDS = { step: "info", warning: "warning", text: "warning" };

function steps(progress) {
    return h("ol", { class: "vb-steps" }, progress.steps.map(step => h(
        "li", null, h("span", { class: `vb-${KINDS[step.kind] ?? "info"}` }, icon(KINDS[step.kind] ?? "info")),
        h("span", null, step.kind === "warning" ? h("strong", null, "Warning: ") : null, step.domain ? `${step.domain}: ` : "", step.message))));
}

export function work(page, id) {
    const element = h("div", { class: "vb-view" });
    let whole = null; // once it has ended: with its progress and its document
    let error = null;

    async function load() {
        try {
            whole = await page.works.show(id);
            error = null;
        } catch (exception) {
            error = exception;
        }
        view.update();
    }

    function result() {
        const document = whole.result;
        if (!document || document.schema?.startsWith("vbackup.error/"))
            return null;
        const disks = document.disks ?? [];
        const list = [
            ["Backup", document.id], ["Level", document.level], ["Size", document.size_bytes === undefined ? null : bytes(document.size_bytes)],
            ["Consistency", document.consistency],
            ["Restored as", document.uuid ? document.name : null], ["Definition", document.domain_xml],
            ["Disks", disks.length ? h("ul", null, disks.map(disk => h("li", null, diskLine(disk)))) : null],
        ];
        return card("Result", descriptions(...list));
    }

    function diskLine(disk) {
        if (disk.written_bytes !== undefined)
            return `${disk.dev}: ${bytes(disk.written_bytes)} written${disk.full ? `, in full: ${disk.full}` : ""}`;
        return [disk.dev, disk.file, disk.level, disk.reason].filter(Boolean).join(": ");
    }

    const view = {
        element,
        ended(known) {
            if (known.id === id)
                load();
        },
        update() {
            if (error) {
                swap(element, errorAlert(error), link("All activity", page.href("activity")));
                return;
            }
            const known = page.works.list.find(one => one.id === id) ?? whole;
            if (!known || (known.state !== "running" && !whole)) {
                swap(element, spinner("Reading the record …"));
                return;
            }
            const isRunning = known.state === "running";
            let progress = page.works.progress.get(id);
            if (!progress && whole) {
                progress = new Progress();
                whole.progress.forEach(line => progress.addLine(line));
            }
            progress ??= new Progress();
            const failure = isRunning || !whole ? null : failureOf(whole);
            swap(
                element,
                h("nav", { class: "pf-v6-c-breadcrumb", "aria-label": "Breadcrumb" }, h("ol", { class: "pf-v6-c-breadcrumb__list" },
                    h("li", { class: "pf-v6-c-breadcrumb__item" }, link("Activity", page.href("activity"), { class: "pf-v6-c-breadcrumb__link", id: "crumb-activity" })))),
                h("div", { class: "vb-title" },
                  h("h1", null, known.title), workLabel(known),
                  h("div", { class: "vb-buttons" },
                    isRunning ? button("Stop …", () => stopDialog(page, known), { kind: "danger", id: "stop" }) : null,
                    !isRunning && !failure && known.kind === "download"
                        ? button("Save the file", () => save(`${known.path}/result`, known.name), { kind: "primary", id: "save" }) : null,
                    isRunning ? null : button("Remove the record", async () => {
                        await page.works.remove(id);
                        page.go("activity");
                    }, { kind: "secondary", id: "remove" }))),
                failure ? errorAlert(failure) : null,
                !isRunning && !failure ? alert("ok", `Done in ${duration(known.ended - known.started)}.`) : null,
                isRunning ? card("Progress", progress.disks.size ? diskBars(progress) : spinner("It begins …")) : null,
                !isRunning && whole && known.kind !== "download" ? result() : null,
                card("Report", progress.steps.length ? steps(progress) : h("p", { class: "vb-quiet" }, "Nothing was reported yet."),
                     descriptions(["Begun", moment(known.started)], ["Ended", known.ended ? moment(known.ended) : null],
                                  ["Exit status", known.status === undefined ? null : String(known.status)]),
                     h("h3", null, "Command"), codeBlock(shell(["vbackup", ...known.argv]))));
        },
    };
    load();
    return view;
}

function stopDialog(page, known) {
    dialog(`Stop: ${known.title}?`,
           h("p", null, "vbackup ends as after Ctrl-C: what it has begun is undone, and earlier backups stay as they are."),
           [["Stop it", "danger", () => page.works.stop(known.id)]], { size: "sm" });
}
