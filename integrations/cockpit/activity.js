// Jobs of the configuration, long work of this page, and what the system's journal has.

import { run } from "./command.js";
import { errorAlert } from "./dialog.js";
import { button, h, label, link, spinner, swap, table } from "./dom.js";
import { ago, duration, moment } from "./format.js";
import { outcomeLabel, workCards, workLabel } from "./work.js";

const LINES = 200;
export function activity(page) {
    const element = h("div", { class: "vb-view" });
    const cards = workCards(page);
    let journal = null;

    // Messages of all units of vbackup, also those of systemd on them.
    async function load() {
        try {
            const text = await run([
                "journalctl",
                "--quiet",
                "--no-pager",
                "--output=json",
                "--reverse",
                `--lines=${LINES}`,
                "--unit=vbackup*",
            ]);
            journal = text
                .split("\n")
                .filter(Boolean)
                .map(line => JSON.parse(line));
        } catch {
            journal = [];
        }
        view.update();
    }

    const jobRow = job => [
        h("strong", null, job.name),
        job.is_running
            ? label("Running", "info")
            : job.last_run
              ? outcomeLabel(job.last_run.outcome)
              : label("Never run", "unknown"),
        job.last_run
            ? h(
                  "span",
                  null,
                  ago(job.last_run.started),
                  job.last_run.steps?.length ? h("span", { class: "vb-quiet" }, ` ${steps(job.last_run)}`) : null,
              )
            : "–",
        job.is_missed ? label("Missed", "warning") : job.next_run ? moment(job.next_run) : "–",
        button(
            "Run now",
            () =>
                page.start({
                    kind: "run",
                    title: `Job ${job.name}`,
                    argv: ["run", "--json", "--progress", "json", "--", job.name],
                }),
            { small: true, id: `run-${job.name}`, disabled: job.is_running, "aria-label": `Run ${job.name} now` },
        ),
    ];

    const steps = last =>
        last.steps
            .map(step => `${step.kind}${step.outcome === "done" ? "" : `: ${step.outcome.replace("_", " ")}`}`)
            .join(", ");

    const workRow = known => [
        link(known.title, page.href("work", known.id), { id: `work-${known.id}` }),
        workLabel(known),
        h("span", { title: moment(known.started) }, ago(known.started)),
        known.ended ? duration(known.ended - known.started) : "–",
    ];

    const text = value => (Array.isArray(value) ? "(binary)" : String(value ?? ""));

    const view = {
        element,
        ended: load,
        progress: cards.update,
        update() {
            cards.update();
            swap(
                element,
                h("h1", null, "Activity"),
                page.works.error ? errorAlert(page.works.error) : null,
                cards.element,
                page.state.jobs.length
                    ? h(
                          "section",
                          { class: "pf-v6-c-card" },
                          h(
                              "div",
                              { class: "pf-v6-c-card__title" },
                              h("h2", { class: "pf-v6-c-card__title-text" }, "Jobs"),
                          ),
                          table("Jobs", ["Job", "Last run", "When", "Next run", ""], page.state.jobs.map(jobRow)),
                      )
                    : null,
                h(
                    "section",
                    { class: "pf-v6-c-card" },
                    h(
                        "div",
                        { class: "pf-v6-c-card__title" },
                        h("h2", { class: "pf-v6-c-card__title-text" }, "Begun on this page"),
                    ),
                    page.works.list.length
                        ? table("Begun on this page", ["What", "State", "Begun", "Took"], page.works.list.map(workRow))
                        : h("p", { class: "vb-quiet vb-wait" }, "Nothing yet."),
                ),
                h(
                    "section",
                    { class: "pf-v6-c-card" },
                    h(
                        "div",
                        { class: "pf-v6-c-card__title" },
                        h("h2", { class: "pf-v6-c-card__title-text" }, "System journal"),
                    ),
                    journal === null
                        ? spinner("Reading the journal …")
                        : journal.length
                          ? table(
                                "System journal",
                                ["Time", "Unit", "Message"],
                                journal.map(entry => [
                                    moment(entry.__REALTIME_TIMESTAMP / 1e6),
                                    text(entry._SYSTEMD_UNIT ?? entry.UNIT),
                                    text(entry.MESSAGE),
                                ]),
                            )
                          : h("p", { class: "vb-quiet vb-wait" }, "It has nothing of vbackup, or there is none."),
                ),
            );
        },
    };
    load();
    return view;
}
