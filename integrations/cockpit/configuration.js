// The configuration: is it right, and what does it say. It is written in an editor, and shown here.

import { repositoryDialog } from "./backup.js";
import { run, vbackup } from "./command.js";
import { dialog, errorAlert, field, form, text } from "./dialog.js";
import { alert, button, card, h, spinner, swap, table } from "./dom.js";
import { moment } from "./format.js";
import { forgetRepository, openedRepositories } from "./state.js";

const INIT = "/etc/vbackup/vbackup.toml";

// Let vbackup write a first configuration with what libvirt has.
function initDialog(again) {
    const repository = text("", { placeholder: "/srv/backup" });
    const file = text(INIT);
    dialog(
        "Write a first configuration",
        form(
            field("Directory of the repository", repository),
            field("File", file, "A new file. Look through it in an editor then."),
        ),
        [
            [
                "Write it",
                "primary",
                async () => {
                    await run(["vbackup", "config", "init", "-r", repository.value, "--output", file.value]);
                    again();
                },
            ],
        ],
    );
}

const place = one => (one.line ? `${one.path}:${one.line}` : one.path);

export function configuration(page) {
    const element = h("div", { class: "vb-view" });
    let checked = null; // vbackup.configcheck/1
    let error = null;
    let keys = [];

    async function load() {
        checked = error = null;
        keys = [];
        view.update();
        const shown = vbackup(["config", "show"]).catch(() => null);
        try {
            checked = await vbackup(["config", "check"]);
        } catch (exception) {
            error = exception;
        }
        keys = (await shown)?.keys ?? [];
        view.update();
    }

    function verdict() {
        const faults = checked.faults.map(one =>
            h("li", null, h("span", { class: "vb-path" }, place(one)), `: ${one.message}`),
        );
        return [
            checked.valid
                ? alert("ok", "The configuration is valid and can be used")
                : alert(
                      "danger",
                      "The configuration has faults; runs are refused, or would fail",
                      h("ul", { class: "vb-reasons" }, faults),
                  ),
            checked.warnings.map(one =>
                alert("warning", one.message, one.path ? h("p", { class: "vb-path" }, place(one)) : null),
            ),
            checked.jobs.length
                ? h(
                      "section",
                      { class: "pf-v6-c-card" },
                      h(
                          "div",
                          { class: "pf-v6-c-card__title" },
                          h("h2", { class: "pf-v6-c-card__title-text" }, "Jobs"),
                      ),
                      table(
                          "Jobs",
                          ["Job", "Virtual machines", "Repository", "Next run"],
                          checked.jobs.map(job => [
                              job.name,
                              h(
                                  "div",
                                  null,
                                  job.domains.map(one => one.name).join(", ") || "none",
                                  job.left_out.map(one =>
                                      h("div", { class: "vb-quiet" }, `without ${one.name}: ${one.reason}`),
                                  ),
                              ),
                              job.repository,
                              job.next ? moment(job.next) : "–",
                          ]),
                      ),
                  )
                : null,
        ];
    }

    const value = one =>
        one.value === null
            ? h("span", { class: "vb-quiet" }, one.default)
            : typeof one.value === "object" && !Array.isArray(one.value)
              ? JSON.stringify(one.value)
              : [one.value].flat().join(", ");

    const keyRows = () =>
        keys.map(one => [
            `[${one.table.join(".")}] ${one.name}`,
            value(one),
            one.path ? h("span", { class: "vb-path" }, place(one)) : "default",
        ]);

    const view = {
        element,
        update() {
            const opened = openedRepositories();
            swap(
                element,
                h(
                    "div",
                    { class: "vb-title" },
                    h("h1", null, "Configuration"),
                    h(
                        "div",
                        { class: "vb-buttons" },
                        error
                            ? button("Write a first one …", () => initDialog(load), { kind: "primary", id: "init" })
                            : null,
                        button(
                            "Check again",
                            () => {
                                load();
                                page.refresh();
                            },
                            { id: "check" },
                        ),
                    ),
                ),
                error ? errorAlert(error) : checked ? verdict() : spinner("Checking …"),
                keys.length
                    ? h(
                          "section",
                          { class: "pf-v6-c-card" },
                          h(
                              "div",
                              { class: "pf-v6-c-card__title" },
                              h("h2", { class: "pf-v6-c-card__title-text" }, "Keys, and where they come from"),
                          ),
                          table("Keys, and where they come from", ["Key", "Value", "Place"], keyRows()),
                      )
                    : null,
                card(
                    "Repositories opened by hand",
                    opened.length
                        ? table(
                              "Repositories opened by hand",
                              ["Directory", ""],
                              opened.map(path => [
                                  h("span", { class: "vb-path" }, path),
                                  button(
                                      "Forget",
                                      () => {
                                          forgetRepository(path);
                                          page.refresh();
                                      },
                                      { small: true, kind: "link", "aria-label": `Forget ${path}` },
                                  ),
                              ]),
                          )
                        : h("p", { class: "vb-quiet" }, "None in this browser."),
                    h(
                        "p",
                        { class: "vb-buttons" },
                        button("Open a repository …", () => repositoryDialog(page), { id: "open" }),
                    ),
                ),
            );
        },
    };
    load();
    return view;
}
