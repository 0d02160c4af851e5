// One virtual machine: its points, and what can be done with them.

import { backupDialog } from "./backup.js";
import { vbackup } from "./command.js";
import { dialog, errorAlert } from "./dialog.js";
import { alert, button, card, descriptions, empty, h, label, link, spinner, swap, table } from "./dom.js";
import { ago, bytes, duration, moment, plural } from "./format.js";
import { healthLabel } from "./overview.js";
import { restoreWizard } from "./restore.js";
import { points } from "./state.js";
import { workCards } from "./work.js";

const STATES = {
    good: ["Verified", "ok"],
    partial: ["Verified in part", "ok"],
    damaged: ["Damaged", "danger"],
    broken: ["Broken", "danger"],
    unverified: ["Not verified", "unknown"],
    protected: ["Protected", "info"],
};
const CONSISTENCY = { filesystem: "file systems frozen", crash: "as after a power failure", offline: "shut off" };

export const crumbs = (page, ...items) =>
    h(
        "nav",
        { class: "pf-v6-c-breadcrumb", "aria-label": "Breadcrumb" },
        h(
            "ol",
            { class: "pf-v6-c-breadcrumb__list" },
            [["Virtual machines", page.href("")], ...items].map(([text, href], number) =>
                h(
                    "li",
                    { class: "pf-v6-c-breadcrumb__item" },
                    number
                        ? h("span", { class: "pf-v6-c-breadcrumb__item-divider", "aria-hidden": "true" }, "›")
                        : null,
                    href
                        ? link(text, href, { class: "pf-v6-c-breadcrumb__link", id: `crumb-${number}` })
                        : h("span", { class: "pf-v6-c-breadcrumb__link pf-m-current", "aria-current": "page" }, text),
                ),
            ),
        ),
    );

export function domain(page, path, key) {
    const element = h("div", { class: "vb-view" });
    let found = null; // { points, broken }
    let error = null;
    let loaded = null; // the newest point that was known when the points were read

    async function load() {
        try {
            found = await points(path, key);
            error = null;
        } catch (exception) {
            error = exception;
        }
        view.update();
    }

    const known = () => page.state.domain(path, key);
    const name = () => known()?.name ?? found?.points[0]?.domain.name ?? key;
    const about = () => ({ path, key: known()?.key ?? key, name: name() });
    const isMine = one => one.domain?.key === about().key && one.domain.path === path;
    const cards = workCards(page, isMine);

    function row(point) {
        const id = point.id;
        const usable = !point.states.includes("broken");
        return [
            h("div", null, h("div", null, moment(point.time)), h("div", { class: "vb-id" }, id)),
            h(
                "span",
                null,
                point.level,
                point.chain_images > 1 ? h("span", { class: "vb-quiet" }, ` (chain of ${point.chain_images})`) : null,
            ),
            bytes(point.size_bytes),
            h(
                "span",
                { class: "vb-labels" },
                point.states.map(one => label(...(STATES[one] ?? [one, "unknown"]))),
                point.unusual.map(one => label(`${one.dev}: ${one.what}`, "warning")),
                h("span", { class: "vb-quiet" }, CONSISTENCY[point.consistency] ?? point.consistency),
                point.note ? h("span", { class: "vb-note" }, point.note) : null,
            ),
            h(
                "div",
                { class: "vb-buttons" },
                button("Restore …", () => restoreWizard(page, about(), found.points, point), {
                    small: true,
                    id: `restore-${id}`,
                    disabled: !usable,
                    "aria-label": `Restore ${id}`,
                }),
                h(
                    "a",
                    {
                        class: "pf-v6-c-button pf-m-secondary pf-m-small",
                        href: page.href("files", path, key, id),
                        id: `files-${id}`,
                        "aria-label": `Files in ${id}`,
                    },
                    h("span", { class: "pf-v6-c-button__text" }, "Files"),
                ),
                button(point.protection ? "Unprotect" : "Protect", () => protect(point), {
                    kind: "link",
                    small: true,
                    id: `protect-${id}`,
                    "aria-label": `${point.protection ? "Unprotect" : "Protect"} ${id}`,
                }),
            ),
        ];
    }

    function protect(point) {
        dialog(
            point.protection ? "Remove the protection?" : "Protect this backup?",
            h(
                "p",
                null,
                point.protection
                    ? `Pruning may remove ${point.id} then.`
                    : `Pruning keeps ${point.id} and what it depends on.`,
            ),
            [
                [
                    point.protection ? "Unprotect" : "Protect",
                    "primary",
                    async () => {
                        await vbackup([point.protection ? "unprotect" : "protect", "-r", path, "--", key, point.id]);
                        await load();
                    },
                ],
            ],
            { size: "sm" },
        );
    }

    function verify() {
        return page.start({
            kind: "verify",
            title: `Verification of ${name()}`,
            domain: about(),
            argv: ["verify", "-r", path, "--json", "--progress", "json", "--", key],
        });
    }

    const view = {
        element,
        progress: cards.update,
        ended(work) {
            if (isMine(work)) load();
        },
        update() {
            const state = known();
            if (found && state?.last?.id && state.last.id !== loaded) {
                // A backup by somebody else: the timer, or another window.
                const isNews = loaded !== null && !found.points.some(point => point.id === state.last.id);
                loaded = state.last.id;
                if (isNews) load();
            }
            const newest = found?.points.find(point => !point.states.includes("broken"));
            const works = page.works.running.filter(isMine);
            cards.update();
            swap(
                element,
                crumbs(page, [name(), null]),
                h(
                    "div",
                    { class: "vb-title" },
                    h("h1", null, name()),
                    state ? healthLabel(state) : null,
                    h(
                        "div",
                        { class: "vb-buttons" },
                        button("Back up now", () => backupDialog(page, about()), {
                            kind: "primary",
                            id: "backup",
                            disabled: works.some(one => one.kind === "backup"),
                        }),
                        button("Restore …", () => restoreWizard(page, about(), found.points, newest), {
                            id: "restore",
                            disabled: !newest,
                        }),
                        button("Verify", verify, { id: "verify", disabled: !newest || works.length > 0 }),
                    ),
                ),
                error ? errorAlert(error) : null,
                state?.reasons.length
                    ? alert(
                          state.health === "critical" ? "danger" : state.health === "ok" ? "info" : "warning",
                          state.reasons[0],
                          state.reasons.slice(1).map(reason => h("p", null, reason)),
                      )
                    : null,
                found?.broken.map(one => alert("danger", `${one.id} cannot be read`, h("p", null, one.reason))),
                cards.element,
                card(
                    null,
                    descriptions(
                        ["Repository", path],
                        ["UUID", state?.uuid],
                        [
                            "Job",
                            state?.job
                                ? `${state.job}${page.state.job(state.job)?.next_run ? `, next ${moment(page.state.job(state.job).next_run)}` : ""}`
                                : "none",
                        ],
                        [
                            "Newest point",
                            state?.last
                                ? `${ago(state.last.time)}${state.max_age_s ? `; promised within ${duration(state.max_age_s)}` : ""}`
                                : "none",
                        ],
                        ["Chain", state?.chain_images ? plural(state.chain_images, "image") : null],
                        ["Verified", state?.verified ? `${ago(state.verified)}: ${state.verdict}` : "never"],
                        [
                            "Copies",
                            state?.copies?.length
                                ? h(
                                      "ul",
                                      null,
                                      state.copies.map(copy =>
                                          h(
                                              "li",
                                              null,
                                              `${copy.target}: ${copy.behind ? `${plural(copy.behind, "backup")} behind` : "up to date"}`,
                                          ),
                                      ),
                                  )
                                : null,
                        ],
                    ),
                ),
                h(
                    "section",
                    { class: "pf-v6-c-card" },
                    h(
                        "div",
                        { class: "pf-v6-c-card__title" },
                        h("h2", { class: "pf-v6-c-card__title-text" }, "Points"),
                    ),
                    !found
                        ? error
                            ? null
                            : spinner("Reading the points …")
                        : found.points.length
                          ? table(`Points of ${name()}`, ["Time", "Level", "Size", "State", ""], found.points.map(row))
                          : empty("machine", "No points yet", h("p", null, "Back it up now to have one.")),
                ),
            );
        },
    };
    load();
    return view;
}
