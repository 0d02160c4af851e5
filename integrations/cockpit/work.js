// One piece of long work: how far it is, what it reports, how it ended.

import { dialog, errorAlert } from "./dialog.js";
import {
    alert,
    bar,
    button,
    card,
    codeBlock,
    descriptions,
    h,
    icon,
    label,
    link,
    section,
    spinner,
    swap,
    table,
} from "./dom.js";
import { bytes, duration, moment, shell } from "./format.js";
import { failureOf, Progress, save } from "./works.js";

const OUTCOMES = {
    done: ["Done", "ok"],
    some_failed: ["Failed in part", "danger"],
    failed: ["Failed", "danger"],
    skipped: ["Skipped", "unknown"],
    interrupted: ["Interrupted", "danger"],
    running: ["Running", "info"],
};

// How a run, or a step of it, has ended.
export const outcomeLabel = outcome => label(...(OUTCOMES[outcome] ?? [outcome, "unknown"]));

const PHASES = { copy: "copy", check: "check", write: "write" };

// The state of a work in a word.
export function workLabel(known) {
    if (known.state === "running") return label("Running", "info");
    if (known.state === "lost") return label("Interrupted", "danger");
    return known.status === 0
        ? label("Done", "ok")
        : label(known.status > 128 ? "Stopped" : "Failed", known.status > 128 ? "warning" : "danger");
}

// A card with the bars of work that runs.
function workBars(page, known) {
    const progress = page.works.progress.get(known.id) ?? new Progress();
    const { done, total } = progress.total;
    return section(
        { class: "vb-work" },
        null,
        h(
            "div",
            { class: "vb-title" },
            h("h2", { class: "vb-work-title" }, known.title),
            link("Details", page.href("work", known.id), {
                id: `details-${known.id}`,
                "aria-label": `Details of ${known.title}`,
            }),
        ),
        bar("Progress", done, total, total ? `${bytes(done)} of ${bytes(total)}` : "begins"),
        h("p", { class: "vb-quiet" }, progress.steps.at(-1)?.message ?? ""),
    );
}

// The cards of the works that are wanted and run; a part of a view that is drawn again without the rest.
export function workCards(page, isWanted = () => true) {
    const element = h("div", { class: "vb-view" });
    const update = () =>
        swap(
            element,
            page.works.running.filter(isWanted).map(known => workBars(page, known)),
        );
    return { element, update };
}

function diskBars(progress) {
    return [...progress.disks.values()].map(disk =>
        bar(
            `${disk.domain ? `${disk.domain}, ` : ""}${disk.dev}: ${PHASES[disk.phase] ?? disk.phase}`,
            disk.done_bytes,
            disk.total_bytes,
            `${bytes(disk.done_bytes)} of ${bytes(disk.total_bytes)}`,
        ),
    );
}

const KINDS = { step: "info", warning: "warning", text: "warning" };

function steps(progress) {
    return h(
        "ol",
        { class: "vb-steps" },
        progress.steps.map(step =>
            h(
                "li",
                null,
                h("span", { class: `vb-${KINDS[step.kind] ?? "info"}` }, icon(KINDS[step.kind] ?? "info")),
                h(
                    "span",
                    null,
                    step.kind === "warning" ? h("strong", null, "Warning: ") : null,
                    step.domain ? `${step.domain}: ` : "",
                    step.message,
                ),
            ),
        ),
    );
}

export function work(page, id) {
    const element = h("div", { class: "vb-view" });
    let whole = null; // once it has ended: with its progress and its document
    let error = null;
    let isLoading = false;

    async function load() {
        isLoading = true;
        try {
            whole = await page.works.show(id);
            error = null;
        } catch (exception) {
            error = exception;
        }
        isLoading = false;
        view.update();
    }

    function result() {
        const document = whole.result;
        if (!document || document.schema?.startsWith("vbackup.error/")) return null;
        if (document.runs) return document.runs.map(runCard);
        const disks = document.disks ?? [];
        const list = [
            ["Backup", document.id],
            ["Level", document.level],
            ["Size", document.size_bytes === undefined ? null : bytes(document.size_bytes)],
            ["Consistency", document.consistency],
            ["Restored as", document.uuid ? document.name : null],
            ["Definition", document.domain_xml],
            [
                "Disks",
                disks.length
                    ? h(
                          "ul",
                          null,
                          disks.map(disk => h("li", null, diskLine(disk))),
                      )
                    : null,
            ],
        ];
        return card("Result", descriptions(...list));
    }

    // A run of a job: its steps, and what became of each machine.
    function runCard(one) {
        return card(
            `Job ${one.job}`,
            table(
                "Steps",
                ["Step", "Result", "What"],
                one.steps.map(step => [
                    step.target ? `${step.kind}, ${step.target}` : step.kind,
                    outcomeLabel(step.outcome),
                    [step.summary, step.reason, ...step.warnings].filter(Boolean).join(" "),
                ]),
            ),
            one.domains.length
                ? table(
                      "Virtual machines",
                      ["Name", "Result", "Backup", "Size"],
                      one.domains.map(domain => [
                          domain.name,
                          outcomeLabel(domain.outcome),
                          domain.fault?.message ?? domain.backup ?? "–",
                          domain.size_bytes === null ? "–" : bytes(domain.size_bytes),
                      ]),
                  )
                : null,
            one.unusual.map(said => alert("warning", said)),
            one.notices.map(said => alert("warning", said)),
        );
    }

    function diskLine(disk) {
        if (disk.written_bytes !== undefined)
            return `${disk.dev}: ${bytes(disk.written_bytes)} written${disk.full ? `, in full: ${disk.full}` : ""}`;
        return [disk.dev, disk.file, disk.level, disk.reason].filter(Boolean).join(": ");
    }

    // A live restore that was interrupted can go on, or be given up: the machine may run, and what it has written counts.
    function liveAgain(known) {
        const { argv, domain } = known;
        const again = option => [
            "restore",
            "-r",
            domain.path,
            ...(argv.includes("-c") ? ["-c", argv[argv.indexOf("-c") + 1]] : []),
            "--json",
            "--progress",
            "json",
            "--output",
            argv[argv.indexOf("--output") + 1],
            "--live",
            ...option,
            "--",
            domain.key,
        ];
        const begin = async (title, option) =>
            page.go("work", (await page.start({ kind: "restore", title, domain, argv: again(option) })).id);
        return h(
            "p",
            { class: "vb-buttons" },
            button("Go on with the restore", () => begin(known.title, ["--resume"]), { kind: "primary", id: "resume" }),
            button(
                "Give it up …",
                () =>
                    dialog(
                        "Give up the live restore?",
                        h(
                            "p",
                            null,
                            "The machine is ended, and what was restored and what it has written since are removed.",
                        ),
                        [["Give it up", "danger", () => begin(`End of: ${known.title}`, ["--abort", "--yes"])]],
                        { size: "sm" },
                    ),
                { id: "abort" },
            ),
        );
    }

    const view = {
        element,
        update() {
            if (error) {
                swap(element, errorAlert(error), link("All activity", page.href("activity")));
                return;
            }
            const known = page.works.list.find(one => one.id === id) ?? whole;
            if (!known || (known.state !== "running" && whole?.state !== known.state)) {
                // It has ended since it was read.
                if (known && !isLoading) load();
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
                h(
                    "nav",
                    { class: "pf-v6-c-breadcrumb", "aria-label": "Breadcrumb" },
                    h(
                        "ol",
                        { class: "pf-v6-c-breadcrumb__list" },
                        h(
                            "li",
                            { class: "pf-v6-c-breadcrumb__item" },
                            link("Activity", page.href("activity"), {
                                class: "pf-v6-c-breadcrumb__link",
                                id: "crumb-activity",
                            }),
                        ),
                    ),
                ),
                h(
                    "div",
                    { class: "vb-title" },
                    h("h1", null, known.title),
                    workLabel(known),
                    h(
                        "div",
                        { class: "vb-buttons" },
                        isRunning
                            ? button("Stop …", () => stopDialog(page, known), { kind: "danger", id: "stop" })
                            : null,
                        !isRunning && !failure && known.kind === "download"
                            ? button("Save the file", () => save(`${known.path}/result`, known.name), {
                                  kind: "primary",
                                  id: "save",
                              })
                            : null,
                        isRunning
                            ? null
                            : button(
                                  "Remove the record",
                                  async () => {
                                      await page.works.remove(id);
                                      page.go("activity");
                                  },
                                  { kind: "secondary", id: "remove" },
                              ),
                    ),
                ),
                failure ? errorAlert(failure) : null,
                failure && isLive(known) ? liveAgain(known) : null,
                !isRunning && !failure ? alert("ok", `Done in ${duration(known.ended - known.started)}.`) : null,
                isRunning
                    ? section(
                          { class: "vb-work" },
                          "Progress",
                          progress.disks.size ? diskBars(progress) : spinner("It begins …"),
                      )
                    : null,
                !isRunning && known.kind !== "download" ? result() : null,
                card(
                    "Report",
                    progress.steps.length
                        ? steps(progress)
                        : h("p", { class: "vb-quiet" }, "Nothing was reported yet."),
                    descriptions(
                        ["Begun", moment(known.started)],
                        ["Ended", known.ended ? moment(known.ended) : null],
                        ["Exit status", known.status === undefined ? null : String(known.status)],
                    ),
                    h("h3", null, "Command"),
                    codeBlock(shell(["vbackup", ...known.argv])),
                ),
            );
        },
    };
    load();
    return view;
}

const isLive = known => known.kind === "restore" && known.argv.includes("--live") && !known.argv.includes("--abort");

function stopDialog(page, known) {
    dialog(
        `Stop: ${known.title}?`,
        h(
            "p",
            null,
            "vbackup ends as after Ctrl-C: what it has begun is undone, and earlier backups stay as they are.",
        ),
        [["Stop it", "danger", () => page.works.stop(known.id)]],
        { size: "sm" },
    );
}
