// The configuration: is it right, and what does it say. It is written in an editor, and shown here.

import { repositoryDialog } from "./backup.js";
import { run, vbackup } from "./command.js";
import { errorAlert } from "./dialog.js";
import { alert, button, card, codeBlock, h, spinner, swap, table } from "./dom.js";
import { forgetRepository, openedRepositories } from "./state.js";

export function configuration(page) {
    const element = h("div", { class: "vb-view" });
    let checked = null; // { kind, title, lines }
    let shown = null; // text of all keys and where they come from

    async function load() {
        checked = shown = null;
        view.update();
        try {
            const document = await vbackup(["config", "check"]);
            checked = verdict(document);
        } catch (error) {
            checked = { error };
        }
        view.update();
        shown = await run(["vbackup", "config", "show", "--origin"]).catch(() => "");
        view.update();
    }

    function verdict(document) {
        const faults = document.faults ?? document.findings ?? [];
        const lines = faults.map(one => typeof one === "string" ? one : one.message);
        return lines.length ? { kind: "danger", title: "The configuration has faults", lines } : { kind: "ok", title: "The configuration is right", lines: document.warnings ?? [] };
    }

    const view = {
        element,
        update() {
            const opened = openedRepositories();
            swap(
                element,
                h("div", { class: "vb-title" }, h("h1", null, "Configuration"),
                  h("div", { class: "vb-buttons" }, button("Check again", load, { id: "check" }))),
                !checked ? spinner("Checking …") : checked.error ? errorAlert(checked.error)
                    : alert(checked.kind, checked.title, checked.lines.length ? h("ul", null, checked.lines.map(line => h("li", null, line))) : null),
                shown ? card("Keys, and where they come from", codeBlock(shown)) : null,
                card("Repositories opened by hand",
                     opened.length ? table("Repositories opened by hand", ["Directory", ""], opened.map(path => [
                         h("span", { class: "vb-path" }, path), button("Forget", () => {
                             forgetRepository(path);
                             page.refresh();
                         }, { small: true, kind: "link", "aria-label": `Forget ${path}` })])) : h("p", { class: "vb-quiet" }, "None in this browser."),
                     h("p", { class: "vb-buttons" }, button("Open a repository …", () => repositoryDialog(page), { id: "open" }))));
        },
    };
    load();
    return view;
}
