// Dialogs: the browser's own element, which keeps the focus within it and gives it back, in PatternFly's clothes.

import { alert, button, h, icon, uniqueId } from "./dom.js";
import { retryAdvice } from "./command.js";

// Show an error as the command has said it.
export function errorAlert(error, title = null) {
    const advice = retryAdvice(error);
    return alert(
        "danger",
        title ?? error.message,
        title ? h("p", null, error.message) : null,
        advice ? h("p", null, advice) : null,
        error.code ? h("p", { class: "vb-code" }, `${error.code}, exit status ${error.status}`) : null,
    );
}

// A dialog. "body" is elements; "actions" are [text, kind, async function], whose error is shown in it and which close it.
export function dialog(title, body, actions, { size = "md" } = {}) {
    const heading = uniqueId("dialog");
    const problem = h("div", { "aria-live": "assertive" });
    const element = h("dialog", { class: `vb-dialog pf-v6-c-modal-box pf-m-${size}`, "aria-labelledby": heading });
    const end = () => element.close();
    const buttons = actions.map(([text, kind, act]) =>
        button(
            text,
            async event => {
                const pressed = event.currentTarget;
                problem.replaceChildren();
                buttons.forEach(one => {
                    one.disabled = true;
                });
                pressed.classList.add("pf-m-in-progress");
                try {
                    if ((await act()) !== false) end();
                } catch (error) {
                    problem.replaceChildren(errorAlert(error));
                } finally {
                    pressed.classList.remove("pf-m-in-progress");
                    buttons.forEach(one => {
                        one.disabled = false;
                    });
                }
            },
            { kind },
        ),
    );
    const form = h(
        "form",
        {
            class: "vb-dialog-form",
            onsubmit: event => {
                event.preventDefault();
                buttons[0]?.click();
            },
        },
        h("div", { class: "pf-v6-c-modal-box__body" }, problem, body),
        h(
            "footer",
            { class: "pf-v6-c-modal-box__footer" },
            buttons,
            button(actions.length ? "Cancel" : "Close", end, { kind: "link" }),
        ),
    );
    element.append(
        h(
            "div",
            { class: "pf-v6-c-modal-box__close" },
            h(
                "button",
                { type: "button", class: "pf-v6-c-button pf-m-plain", "aria-label": "Close", onclick: end },
                icon("close"),
            ),
        ),
        h(
            "header",
            { class: "pf-v6-c-modal-box__header" },
            h("h1", { class: "pf-v6-c-modal-box__title", id: heading }, title),
        ),
        form,
    );
    element.addEventListener("close", () => element.remove());
    document.body.append(element);
    element.showModal();
    return element;
}

// A field with its label and what there is to know of it. "field" is an input or select.
export function field(text, input, help = null) {
    input.id ||= uniqueId("field");
    const helpId = `${input.id}-help`;
    if (help) input.setAttribute("aria-describedby", helpId);
    return h(
        "div",
        { class: "pf-v6-c-form__group" },
        h(
            "div",
            { class: "pf-v6-c-form__group-label" },
            h(
                "label",
                { class: "pf-v6-c-form__label", for: input.id },
                h("span", { class: "pf-v6-c-form__label-text" }, text),
            ),
        ),
        h(
            "div",
            { class: "pf-v6-c-form__group-control" },
            h(
                "span",
                { class: "pf-v6-c-form-control" },
                input,
                input.localName === "select"
                    ? h(
                          "span",
                          { class: "pf-v6-c-form-control__utilities" },
                          h("span", { class: "pf-v6-c-form-control__toggle-icon" }, icon("down")),
                      )
                    : null,
            ),
            help ? h("div", { class: "pf-v6-c-form__helper-text vb-help", id: helpId }, help) : null,
        ),
    );
}

export const text = (value = "", more = {}) =>
    h("input", { type: "text", value, autocomplete: "off", spellcheck: "false", ...more });

// choices: [value, text], ...
export function select(choices, value, onchange = null) {
    const element = h(
        "select",
        { onchange },
        choices.map(([one, name]) => h("option", { value: one }, name)),
    );
    element.value = value;
    return element;
}

// A check box or radio button with its label and a line below it.
export function choice(
    type,
    name,
    { checked = false, value = "on", group = null, help = null, onchange = null, disabled = false } = {},
) {
    const id = uniqueId("choice");
    const input = h("input", {
        class: `pf-v6-c-${type === "radio" ? "radio" : "check"}__input`,
        type,
        id,
        name: group,
        value,
        checked,
        onchange,
        disabled,
        "aria-describedby": help ? `${id}-help` : null,
    });
    const kind = type === "radio" ? "radio" : "check";
    return h(
        "div",
        { class: `pf-v6-c-${kind}` },
        input,
        h("label", { class: `pf-v6-c-${kind}__label`, for: id }, name),
        help ? h("span", { class: `pf-v6-c-${kind}__description`, id: `${id}-help` }, help) : null,
    );
}

export function fieldset(legend, ...choices) {
    return h(
        "fieldset",
        { class: "pf-v6-c-form__group" },
        h(
            "legend",
            { class: "pf-v6-c-form__label vb-legend" },
            h("span", { class: "pf-v6-c-form__label-text" }, legend),
        ),
        h("div", { class: "pf-v6-c-form__group-control pf-m-stack" }, choices),
    );
}

export const form = (...groups) => h("div", { class: "pf-v6-c-form" }, groups);
