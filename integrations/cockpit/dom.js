// Elements without a framework. Text becomes text nodes, so nothing that a guest or a file is called can become markup.

const SVG = "http://www.w3.org/2000/svg";

// 16 x 16, drawn for this page.
const ICONS = {
    ok: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1zm3.3 4.3L7 9.6 4.7 7.3 3.5 8.5 7 12l5.5-5.5z",
    warning: "M8 1.2 15.6 15H.4zM7.1 6v4.6h1.8V6zm0 5.7v1.7h1.8v-1.7z",
    danger: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1zm-.9 3v5h1.8V4zm0 6.2V12h1.8v-1.8z",
    info: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1zm-.9 3v1.8h1.8V4zm0 3v5h1.8V7z",
    unknown:
        "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1zM5.4 6.2h1.7a.9.9 0 1 1 1.4.8C7.6 7.6 7.1 8 7.1 9.3h1.7c0-.7.3-.9.9-1.3a2.7 2.7 0 1 0-4.3-1.8zm1.7 4.3v1.7h1.8v-1.7z",
    folder: "M1 3h5l1.5 2H15v8.5H1z",
    file: "M3 1h6.5L13 4.5V15H3zm6 1.5V5h2.5z",
    link: "M6.5 4H4a4 4 0 0 0 0 8h2.5v-1.7H4a2.3 2.3 0 0 1 0-4.6h2.5zm3 0v1.7H12a2.3 2.3 0 0 1 0 4.6H9.5V12H12a4 4 0 0 0 0-8zM5 7.2v1.6h6V7.2z",
    close: "M3.2 2 8 6.8 12.8 2 14 3.2 9.2 8l4.8 4.8-1.2 1.2L8 9.2 3.2 14 2 12.8 6.8 8 2 3.2z",
    down: "M3 5.5 8 10.5l5-5-1.2-1.2L8 8.1 4.2 4.3z",
    machine: "M1 2h14v9.5H9v1.5h2.5V14.5h-7V13H7v-1.5H1zm1.6 1.6v6.3h10.8V3.6z",
};

export function icon(name) {
    const svg = document.createElementNS(SVG, "svg");
    const path = document.createElementNS(SVG, "path");
    for (const [key, value] of Object.entries({
        viewBox: "0 0 16 16",
        width: "1em",
        height: "1em",
        fill: "currentColor",
        "aria-hidden": "true",
        class: "vb-icon",
    }))
        svg.setAttribute(key, value);
    path.setAttribute("d", ICONS[name]);
    path.setAttribute("fill-rule", "evenodd");
    svg.append(path);
    return svg;
}

// An element: h("button", { class: "...", onclick: f, disabled: true }, "text", otherElement, null).
export function h(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
        if (value === null || value === undefined || value === false) continue;
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name === "value" || name === "checked" || name === "indeterminate") element[name] = value;
        else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(
        ...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false),
    );
    return element;
}

// Put new content in the place of the old one, and leave the focus where it was: on the element with the same id.
export function swap(place, ...children) {
    const active = document.activeElement;
    const id = place.contains(active) ? active.id : "";
    place.replaceChildren(...children.flat(Infinity).filter(Boolean));
    if (id) document.getElementById(id)?.focus({ preventScroll: true });
}

let numbers = 0;

// A new id, for labels and descriptions.
export const uniqueId = prefix => `${prefix}-${++numbers}`;

export function button(text, onclick, { kind = "secondary", small = false, ...more } = {}) {
    return h(
        "button",
        { type: "button", class: `pf-v6-c-button pf-m-${kind}${small ? " pf-m-small" : ""}`, onclick, ...more },
        h("span", { class: "pf-v6-c-button__text" }, text),
    );
}

// A link within this page that looks like one.
export function link(text, href, more = {}) {
    return h("a", { href, ...more }, text);
}

const COLORS = { ok: "green", warning: "orange", danger: "red", info: "blue", unknown: "grey" };

export function label(text, kind = "unknown", { plain = false } = {}) {
    return h(
        "span",
        { class: `pf-v6-c-label pf-m-${COLORS[kind]} pf-m-compact` },
        h(
            "span",
            { class: "pf-v6-c-label__content" },
            plain ? null : h("span", { class: "pf-v6-c-label__icon" }, icon(kind)),
            h("span", { class: "pf-v6-c-label__text" }, text),
        ),
    );
}

const SPOKEN = { ok: "Success", success: "Success", warning: "Attention", danger: "Error", info: "Note" };

// A message within the page.
export function alert(kind, title, ...body) {
    const name = kind === "ok" ? "success" : kind;
    return h(
        "div",
        { class: `pf-v6-c-alert pf-m-inline pf-m-${name}`, role: kind === "danger" ? "alert" : "status" },
        h("div", { class: "pf-v6-c-alert__icon" }, icon(kind)),
        h(
            "p",
            { class: "pf-v6-c-alert__title" },
            h("span", { class: "pf-v6-screen-reader" }, `${SPOKEN[kind]}: `),
            title,
        ),
        body.flat().some(Boolean) ? h("div", { class: "pf-v6-c-alert__description" }, ...body) : null,
    );
}

export function spinner(text) {
    return h(
        "div",
        { class: "vb-wait", role: "status" },
        h("span", { class: "vb-spinner", "aria-hidden": "true" }),
        text,
    );
}

export function empty(iconName, title, ...body) {
    return h(
        "div",
        { class: "pf-v6-c-empty-state" },
        h(
            "div",
            { class: "pf-v6-c-empty-state__content" },
            h("div", { class: "pf-v6-c-empty-state__icon" }, icon(iconName)),
            h("h2", { class: "pf-v6-c-empty-state__title-text" }, title),
            h("div", { class: "pf-v6-c-empty-state__body" }, ...body),
        ),
    );
}

export function card(title, ...body) {
    return section({}, title, ...body);
}

export function section(attributes, title, ...body) {
    return h(
        "section",
        { ...attributes, class: `pf-v6-c-card ${attributes.class ?? ""}` },
        title
            ? h("div", { class: "pf-v6-c-card__title" }, h("h2", { class: "pf-v6-c-card__title-text" }, title))
            : null,
        h("div", { class: "pf-v6-c-card__body" }, ...body),
    );
}

// columns: names of columns; an empty one has actions. rows: arrays of cells. The name is repeated in each cell, which on
// a telephone is what stands before it.
export function table(caption, columns, rows, { firstIsHeader = true } = {}) {
    const cell = (content, number) => {
        const attributes = {
            class: `pf-v6-c-table__${number ? "td" : "th"}`,
            "data-label": columns[number] || null,
            role: "cell",
        };
        if (!columns[number]) attributes.class += " vb-actions";
        if (number === 0 && firstIsHeader) return h("th", { ...attributes, role: "rowheader", scope: "row" }, content);
        return h("td", { ...attributes, class: attributes.class.replace("__th", "__td") }, content);
    };
    return h(
        "table",
        { class: "pf-v6-c-table pf-m-compact vb-table", role: "table" },
        h("caption", { class: "pf-v6-screen-reader" }, caption),
        h(
            "thead",
            { class: "pf-v6-c-table__thead", role: "rowgroup" },
            h(
                "tr",
                { class: "pf-v6-c-table__tr", role: "row" },
                columns.map(name =>
                    h(
                        "th",
                        { class: "pf-v6-c-table__th", scope: "col", role: "columnheader" },
                        name || h("span", { class: "pf-v6-screen-reader" }, "Actions"),
                    ),
                ),
            ),
        ),
        h(
            "tbody",
            { class: "pf-v6-c-table__tbody", role: "rowgroup" },
            rows.map(cells => h("tr", { class: "pf-v6-c-table__tr", role: "row" }, cells.map(cell))),
        ),
    );
}

// pairs: [term, description], ...; those without a description are left out.
export function descriptions(...pairs) {
    return h(
        "dl",
        { class: "pf-v6-c-description-list vb-descriptions" },
        pairs
            .filter(([, value]) => value !== null && value !== undefined && value !== "")
            .map(([term, value]) =>
                h(
                    "div",
                    { class: "pf-v6-c-description-list__group" },
                    h(
                        "dt",
                        { class: "pf-v6-c-description-list__term" },
                        h("span", { class: "pf-v6-c-description-list__text" }, term),
                    ),
                    h(
                        "dd",
                        { class: "pf-v6-c-description-list__description" },
                        h("div", { class: "pf-v6-c-description-list__text" }, value),
                    ),
                ),
            ),
    );
}

// A bar: how much is done of how much; null if that is not known.
export function bar(name, done, total, text) {
    const percent = total ? Math.min(100, Math.floor((100 * done) / total)) : null;
    const id = uniqueId("bar");
    const indicator = h("div", { class: "pf-v6-c-progress__indicator" });
    indicator.style.width = `${percent ?? 0}%`;
    return h(
        "div",
        { class: "pf-v6-c-progress pf-m-sm" },
        h("div", { class: "pf-v6-c-progress__description", id }, name),
        h(
            "div",
            { class: "pf-v6-c-progress__status", "aria-hidden": "true" },
            h("span", { class: "pf-v6-c-progress__measure" }, text ?? (percent === null ? "" : `${percent} %`)),
        ),
        h(
            "div",
            {
                class: "pf-v6-c-progress__bar",
                role: "progressbar",
                "aria-labelledby": id,
                "aria-valuemin": "0",
                "aria-valuemax": "100",
                "aria-valuenow": percent,
                "aria-valuetext": text ?? null,
            },
            indicator,
        ),
    );
}

export function codeBlock(text) {
    return h(
        "div",
        { class: "pf-v6-c-code-block" },
        h(
            "div",
            { class: "pf-v6-c-code-block__content" },
            h(
                "pre",
                { class: "pf-v6-c-code-block__pre", tabindex: "0" },
                h("code", { class: "pf-v6-c-code-block__code" }, text),
            ),
        ),
    );
}
