// The page: which view, what all views know, and what to do when the connection ends.

import { activity } from "./activity.js";
import { configuration } from "./configuration.js";
import { domain } from "./domain.js";
import { alert, button, h, swap } from "./dom.js";
import { files } from "./files.js";
import { overview } from "./overview.js";
import { State } from "./state.js";
import { work } from "./work.js";
import { failureOf, Works } from "./works.js";

const cockpit = window.cockpit;
const REFRESH_MS = 60000;
// What is shown by another view is not older than this.
const FRESH_MS = 10000;
const PROGRESS_MS = 200;

// By the first word of the address: a function that makes a view, { element, update() }, from what all views know.
const VIEWS = { "": overview, domain, files, activity, work, configuration };
const TABS = [
    ["", "Virtual machines", ["", "domain", "files"]],
    ["activity", "Activity", ["activity", "work"]],
    ["configuration", "Configuration", ["configuration"]],
];

const page = {
    state: new State(),
    works: null,
    isAdministrator: null,
    href: (...path) => `#${["", ...path.map(encodeURIComponent)].join("/")}`,
    go: (...path) => {
        location.hash = page.href(...path);
    },
    // Begin long work, and say so.
    async start(asked) {
        const known = await page.works.start(asked);
        page.say(
            "info",
            `${asked.title}: begun.`,
            known.id,
            h("a", { href: page.href("work", known.id) }, "Follow it"),
        );
        return known;
    },
    // Say something above the view, in place of what was said under the same key.
    say(kind, title, key, ...body) {
        const place = document.getElementById("notices");
        const message = alert(kind, title, ...body);
        message.dataset.key = key;
        [...place.children].filter(one => one.dataset.key === key).forEach(one => one.remove());
        message.append(
            h(
                "div",
                { class: "pf-v6-c-alert__action" },
                button("Dismiss", () => message.remove(), { kind: "link", small: true }),
            ),
        );
        place.prepend(message);
        while (place.children.length > 3) place.lastChild.remove();
    },
    async refresh() {
        refreshed = Date.now();
        await page.state.refresh();
        update();
    },
};

let shown = null; // the view
let isPressed = false; // a key or the mouse: what is replaced meanwhile would never get the click
let isWaiting = false;
let refreshed = 0;

function path() {
    try {
        return location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    } catch {
        return [""]; // an address that is none
    }
}

function show() {
    const [name, ...rest] = path();
    shown?.close?.();
    shown = (VIEWS[name] ?? overview)(page, ...rest);
    document.getElementById("main").replaceChildren(shown.element);
    header(name);
    shown.update();
    if (refreshed && Date.now() - refreshed > FRESH_MS) page.refresh();
}

function header(name) {
    const items = TABS.map(([target, text, names]) => {
        const isCurrent = names.includes(name) || (target === "" && !(name in VIEWS));
        return h(
            "li",
            { class: `pf-v6-c-tabs__item${isCurrent ? " pf-m-current" : ""}` },
            h(
                "a",
                {
                    class: "pf-v6-c-tabs__link",
                    id: `tab-${target}`,
                    href: page.href(target),
                    "aria-current": isCurrent ? "page" : null,
                },
                h("span", { class: "pf-v6-c-tabs__item-text" }, text),
            ),
        );
    });
    swap(
        document.getElementById("header"),
        h(
            "nav",
            { class: "pf-v6-c-tabs pf-m-no-border-bottom", "aria-label": "Backups" },
            h("ul", { class: "pf-v6-c-tabs__list" }, items),
        ),
    );
}

function update() {
    isWaiting = isPressed;
    if (!isPressed) shown?.update();
}

function press() {
    isPressed = true;
}

function release() {
    isPressed = false;
    if (isWaiting) setTimeout(update);
}

let moved = null;

// Some times a second at most.
function progress() {
    moved ??= setTimeout(() => {
        moved = null;
        if (isPressed || !shown?.progress) update();
        else shown.progress();
    }, PROGRESS_MS);
}

function ended(known) {
    const failure = failureOf(known);
    const follow = h("a", { href: page.href("work", known.id) }, "Details");
    if (!failure) {
        page.say("ok", `${known.title}: done.`, known.id, follow);
    } else {
        // The record in the list is without what the command printed.
        page.works.show(known.id).then(whole => {
            const reason = failureOf(whole) ?? failure;
            page.say("danger", `${known.title}: failed.`, known.id, h("p", null, reason.message), follow);
        });
    }
    shown?.ended?.(known);
    page.refresh();
}

function disconnected() {
    document.getElementById("notices").replaceChildren(
        alert(
            "warning",
            "The connection to the server was lost.",
            h("p", null, "Backups and restores that run go on there. Reload this page to see them again."),
            button("Reload", () => location.reload(), { kind: "secondary", small: true }),
        ),
    );
}

function permission() {
    const admin = cockpit.permission({ admin: true });
    const look = () => {
        page.isAdministrator = admin.allowed;
        document.documentElement.classList.toggle("vb-limited", admin.allowed === false);
        page.refresh();
        page.works.refresh();
    };
    admin.addEventListener("changed", look);
    if (admin.allowed !== null) look();
}

function begin() {
    page.works = new Works({ changed: update, moved: progress, ended });
    for (const name of ["pointerdown", "keydown"]) window.addEventListener(name, press, true);
    for (const name of ["pointerup", "pointercancel", "keyup", "blur"]) window.addEventListener(name, release, true);
    window.addEventListener("hashchange", show);
    show();
    cockpit.transport.wait(() => {
        // A channel for nothing but to hear of its end.
        cockpit.channel({ payload: "null" }).addEventListener("close", disconnected);
        permission();
        setInterval(() => document.hidden || page.refresh(), REFRESH_MS);
    });
}

begin();
