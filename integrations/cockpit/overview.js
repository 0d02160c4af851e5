// All virtual machines: are they backed up?

import { backupDialog, repositoryDialog } from "./backup.js";
import { errorAlert } from "./dialog.js";
import { alert, bar, button, card, empty, h, label, link, spinner, swap, table } from "./dom.js";
import { ago, bytes, duration, moment, plural } from "./format.js";
import { KIND } from "./state.js";
import { workCards } from "./work.js";

const WORDS = { ok: "Backed up", warning: "Look at it", critical: "Not backed up", unknown: "No job" };

// What a machine's state is called.
export function healthLabel(domain) {
    if (!domain.last && domain.backups) return label("Broken", "danger");
    if (!domain.last) return label("Never backed up", domain.health === "unknown" ? "unknown" : "danger");
    if (domain.damaged?.length) return label("Damaged", "danger");
    if (domain.is_gone) return label("Gone", domain.health === "ok" ? "unknown" : KIND[domain.health]);
    if (domain.is_overdue) return label("Overdue", KIND[domain.health] === "ok" ? "warning" : KIND[domain.health]);
    if (domain.fault) return label("Last run failed", "danger");
    if (domain.last_read && ["ok", "unknown"].includes(domain.health)) return label("Not known", "unknown");
    return label(WORDS[domain.health], KIND[domain.health]);
}

export function overview(page) {
    const element = h("div", { class: "vb-view" });
    const { state, works } = page;
    const cards = workCards(page);

    function summary() {
        const there = state.domains.filter(one => !one.is_gone);
        const good = there.filter(one => one.health === "ok" && !one.last_read).length;
        const bad = state.domains.filter(one => ["warning", "critical"].includes(one.health));
        const all = plural(there.length, "virtual machine");
        if (!there.length && ["ok", "unknown"].includes(state.health))
            return alert("warning", "libvirt has none of the virtual machines any more");
        if (!bad.length && state.health !== "critical" && state.health !== "warning") {
            const open = there.length - good;
            return good
                ? alert(
                      "ok",
                      open
                          ? `${good} of ${all} backed up as promised; for the others no job promises anything`
                          : `${there.length === 1 ? "The only virtual machine is" : `All ${all} are`} backed up`,
                  )
                : alert(
                      "info",
                      `No job promises backups of ${there.length === 1 ? "this virtual machine" : `these ${all}`}`,
                  );
        }
        const reasons = [
            ...bad.flatMap(one => one.reasons.slice(0, 2).map(reason => [one, reason])),
            ...[...state.repositories, ...state.jobs].flatMap(one =>
                one.health === "ok" ? [] : one.reasons.map(reason => [null, reason]),
            ),
        ];
        return alert(
            state.health === "critical" ? "danger" : "warning",
            bad.length
                ? `${bad.length} of ${plural(state.domains.length, "virtual machine")} ${bad.length === 1 ? "needs" : "need"} attention`
                : "Something needs attention",
            h(
                "ul",
                { class: "vb-reasons" },
                reasons
                    .slice(0, 6)
                    .map(([one, reason]) =>
                        h(
                            "li",
                            null,
                            one ? [link(one.name, page.href("domain", one.path, one.key)), ": "] : null,
                            reason,
                        ),
                    ),
            ),
            reasons.length > 6 ? h("p", null, `… and ${reasons.length - 6} more, in the table.`) : null,
        );
    }

    const repositories = () =>
        state.repositories.map(one =>
            card(
                one.name === one.path ? "Repository" : `Repository ${one.name}`,
                h("p", { class: "vb-path" }, one.path),
                one.fault
                    ? errorAlert(one.fault)
                    : [
                          one.size_bytes
                              ? bar(
                                    "Room",
                                    one.size_bytes - one.free_bytes,
                                    one.size_bytes,
                                    `${bytes(one.free_bytes)} free of ${bytes(one.size_bytes)}`,
                                )
                              : null,
                          h(
                              "p",
                              { class: "vb-quiet" },
                              one.backups_bytes === null ? null : `Backups take ${bytes(one.backups_bytes)}`,
                              one.growth_bytes_day > 0
                                  ? `, ${bytes(Math.round(one.growth_bytes_day))} more each day`
                                  : null,
                              one.days_until_full ? `; full in ${duration(86400 * one.days_until_full)}` : null,
                          ),
                      ],
            ),
        );

    const row = domain => [
        link(domain.name, page.href("domain", domain.path, domain.key), {
            id: `domain-${domain.path}-${domain.key}`,
            class: "vb-name",
        }),
        running(domain) ? label("Running", "info") : healthLabel(domain),
        domain.last ? h("span", { title: moment(domain.last.time) }, ago(domain.last.time)) : "–",
        domain.backups ? plural(domain.backups, "point") : "–",
        h("span", null, nextRun(domain)),
        button("Back up now", () => backupDialog(page, domain), {
            small: true,
            id: `backup-${domain.path}-${domain.key}`,
            "aria-label": `Back up ${domain.name} now`,
            disabled: Boolean(running(domain)),
        }),
    ];

    const running = domain =>
        works.running.find(
            known => known.domain && known.domain.key === domain.key && known.domain.path === domain.path,
        );

    function nextRun(domain) {
        const job = domain.job && state.job(domain.job);
        if (!job) return "–";
        return job.is_running
            ? `${job.name} is running`
            : job.next_run
              ? `${moment(job.next_run)}, ${job.name}`
              : job.name;
    }

    function nothing() {
        return empty(
            "machine",
            "No backups yet",
            h(
                "p",
                null,
                "Write a configuration (vbackup config init makes one with what libvirt has), or open a repository.",
            ),
            h(
                "p",
                { class: "vb-buttons" },
                button("Open a repository …", () => repositoryDialog(page), { kind: "primary" }),
            ),
        );
    }

    return {
        element,
        progress: cards.update,
        update() {
            cards.update();
            if (!state.read) {
                swap(element, spinner("Reading the backups …"));
                return;
            }
            const isEmpty = !state.repositories.length && !state.domains.length;
            swap(
                element,
                h(
                    "div",
                    { class: "vb-title" },
                    h("h1", null, "Backups of virtual machines"),
                    isEmpty
                        ? null
                        : h(
                              "div",
                              { class: "vb-buttons" },
                              button("Back up a machine …", () => backupDialog(page, null), {
                                  kind: "primary",
                                  id: "backup-any",
                              }),
                              button("Refresh", () => page.refresh(), { kind: "secondary", id: "refresh" }),
                          ),
                ),
                page.isAdministrator === false
                    ? alert(
                          "warning",
                          "Limited access",
                          h(
                              "p",
                              null,
                              "You see and do here what your own user may. Turn on administrative access in Cockpit's top bar for the rest.",
                          ),
                      )
                    : null,
                state.error ? errorAlert(state.error) : null,
                state.warnings.map(warning => alert("warning", warning)),
                isEmpty
                    ? nothing()
                    : [
                          state.domains.length ? summary() : null,
                          cards.element,
                          state.domains.length
                              ? h(
                                    "section",
                                    { class: "pf-v6-c-card" },
                                    table(
                                        "Virtual machines",
                                        ["Name", "State", "Newest point", "Points", "Next run", ""],
                                        state.domains.map(row),
                                    ),
                                )
                              : empty(
                                    "machine",
                                    "This repository has no backups yet",
                                    h("p", null, "Back up a virtual machine, and it is listed here."),
                                ),
                          h("div", { class: "vb-cards" }, repositories()),
                      ],
            );
        },
    };
}
