// The restore wizard: which backup, how, where to; the plan and what speaks against it; and only then the restore.

import { vbackup, virsh } from "./command.js";
import { choice, errorAlert, field, fieldset, form, select, text } from "./dialog.js";
import { alert, button, codeBlock, h, icon, spinner, swap, table, uniqueId } from "./dom.js";
import { bytes, moment, plural, shell } from "./format.js";
import { check } from "./restore_checks.js";
import { Plan, WAYS } from "./restore_plan.js";

const STEPS = ["Backup", "Disks", "Destination", "Review"];
const REVIEW = 3;

// domain: { path, key, name }; points: its backups, newest first; point: the one that is chosen first.
export function restoreWizard(page, domain, points, point) {
    new Wizard(page, points, new Plan(domain, point)).open();
}

class Wizard {
    constructor(page, points, plan) {
        this.page = page;
        this.points = points.filter(one => !one.states.includes("broken"));
        this.plan = plan;
        this.step = 0;
        this.record = null; // what "vbackup show" says of the backup
        this.pools = [];
        this.findings = null; // of the checks
        this.typed = "";
        this.nav = h("ol", { class: "pf-v6-c-wizard__nav-list" });
        this.body = h("div", { class: "pf-v6-c-wizard__main-body" });
        this.problem = h("div", { "aria-live": "assertive" });
        this.footer = h("footer", { class: "pf-v6-c-wizard__footer" });
        this.next = null;
        this.element = this.frame();
    }

    open() {
        document.body.append(this.element);
        this.draw();
        this.element.showModal();
        this.loadRecord();
        this.loadPools();
    }

    // What is set in the plan, and what depends on it.
    set(values) {
        Object.assign(this.plan, values);
        this.draw();
    }

    async loadRecord() {
        const { point, domain } = this.plan;
        this.record = null;
        this.draw();
        try {
            const shown = await vbackup(["show", "-r", domain.path, "--backup", point.id, "--", domain.key]);
            if (point !== this.plan.point) return;
            this.record = shown;
            this.plan.disks = new Map(shown.disks.map(disk => [disk.dev, true]));
            this.problem.replaceChildren();
        } catch (error) {
            this.problem.replaceChildren(errorAlert(error));
        }
        this.draw();
    }

    async loadPools() {
        const names = await virsh(...this.plan.libvirt, "pool-list", "--name").catch(() => []);
        this.pools = names.map(name => name.trim()).filter(Boolean);
        this.set({ pool: this.pools.includes(this.plan.pool) ? this.plan.pool : null });
    }

    get isReady() {
        if (this.step === 0) return true;
        return (
            Boolean(this.record) && (this.step < REVIEW || !this.plan.isInPlace || this.typed === this.plan.domain.name)
        );
    }

    move(to) {
        const faults = [null, this.plan.faultOfDisks, this.plan.faultOfDestination, null];
        const fault = to > this.step ? faults[this.step] : null;
        this.problem.replaceChildren(...(fault ? [alert("danger", fault)] : []));
        if (fault) return;
        this.step = to;
        this.draw();
        this.body.querySelector("input, select, summary")?.focus();
        if (to === REVIEW) this.check();
    }

    async check() {
        this.findings = null;
        this.draw();
        const about = this.plan.argv.join("\0");
        const findings = await check(this.plan, this.record);
        if (about === this.plan.argv.join("\0")) this.findings = findings;
        this.draw();
    }

    async begin() {
        const { argv, domain } = this.plan;
        this.next.disabled = true;
        this.next.classList.add("pf-m-in-progress");
        try {
            const known = await this.page.start({ kind: "restore", title: `Restore of ${domain.name}`, domain, argv });
            this.element.close();
            this.page.go("work", known.id);
        } catch (error) {
            this.problem.replaceChildren(errorAlert(error));
            this.draw();
        }
    }

    // The pages.

    backupPage() {
        const { plan } = this;
        const name = one => `${moment(one.time)}, ${one.level}${one.note ? `: ${one.note}` : ""}`;
        const backups = select(
            this.points.map(one => [one.id, name(one)]),
            plan.point.id,
            event => {
                plan.point = this.points.find(one => one.id === event.target.value);
                this.loadRecord();
            },
        );
        const ways = WAYS.map(([value, title, help]) => {
            const onchange = () => this.set({ way: value });
            return choice("radio", title, { value, help, group: "way", checked: plan.way === value, onchange });
        });
        return form(field("Backup", backups, plan.point.id), fieldset("How", ways));
    }

    disksPage() {
        if (!this.record) return spinner("Reading the backup …");
        const { plan } = this;
        const disks = this.record.disks.map(disk =>
            choice("checkbox", `${disk.dev}, ${bytes(disk.virtual_size_bytes ?? disk.size_bytes)}`, {
                checked: plan.disks.get(disk.dev),
                help: this.chain(disk),
                onchange: event => {
                    plan.disks.set(disk.dev, event.target.checked);
                    this.draw();
                },
            }),
        );
        const others = {
            "in-place": "Other disks stay as they are.",
            original: "Of other disks the definition names the files that the original had.",
        };
        const hint = others[plan.way] ?? "A new machine needs all disks; some can be restored as files.";
        return form(fieldset("Disks", disks), h("p", { class: "vb-quiet" }, hint));
    }

    destinationPage() {
        const { plan } = this;
        if (plan.isInPlace)
            return form(
                choice("checkbox", "Keep old images", {
                    checked: plan.keepOld,
                    help: "Of disks that have to be restored in full, as NAME.before-ID.",
                    onchange: event => this.set({ keepOld: event.target.checked }),
                }),
            );
        const input = (key, more = {}) =>
            text(plan[key], { ...more, oninput: event => Object.assign(plan, { [key]: event.target.value }) });
        return form(
            plan.way === "original" ? null : field("Name of the new machine", input("name")),
            this.pools.length ? this.poolFields() : null,
            field(
                "Directory",
                input("parent"),
                "A new directory named after the machine is made in it; nothing is overwritten. QEMU has to be able to enter it.",
            ),
            plan.way === "live" ? null : this.definitionFields(),
            field(
                "Host",
                input("connect", { placeholder: "this server", onchange: () => this.loadPools() }),
                "Another host by its libvirt URI, such as qemu+ssh://root@hv2/system. Pool and directory are there then.",
            ),
        );
    }

    poolFields() {
        const { pool } = this.plan;
        const place = (name, isChosen, value) =>
            choice("radio", name, { group: "place", checked: isChosen, onchange: () => this.set({ pool: value }) });
        const names = this.pools.map(name => [name, name]);
        return [
            fieldset("Disks go to", [
                place("A directory", !pool, null),
                place("A storage pool of libvirt", Boolean(pool), pool ?? this.pools[0]),
            ]),
            pool
                ? field(
                      "Storage pool",
                      select(names, pool, event => this.set({ pool: event.target.value })),
                  )
                : null,
        ];
    }

    definitionFields() {
        const { plan } = this;
        const formats = [
            ["qcow2", "qcow2"],
            ["raw", "raw"],
        ];
        return [
            field(
                "Image format",
                select(formats, plan.format, event => this.set({ format: event.target.value })),
            ),
            choice("checkbox", "Define it in libvirt", {
                checked: plan.isDefined,
                disabled: !plan.canBeDefined,
                help: plan.canBeDefined ? null : "Only with all disks.",
                onchange: event => this.set({ define: event.target.checked }),
            }),
            choice("checkbox", "Start it", {
                checked: plan.isDefined && plan.start,
                disabled: !plan.isDefined,
                onchange: event => this.set({ start: event.target.checked }),
            }),
        ];
    }

    reviewPage() {
        const { plan } = this;
        const disks = this.record.disks.filter(disk => plan.disks.get(disk.dev));
        const [, way] = WAYS.find(([value]) => value === plan.way);
        return [
            h("p", null, way, ": the state of ", h("strong", null, moment(plan.point.time)), ` as ${plan.newName}.`),
            table(
                "Plan",
                ["Disk", "Size", "Reads", "Goes to"],
                disks.map(disk => [
                    disk.dev,
                    bytes(disk.virtual_size_bytes ?? disk.size_bytes),
                    this.chain(disk),
                    h("span", { class: "vb-path" }, plan.place(disk.dev)),
                ]),
            ),
            h("h2", { class: "vb-work-title" }, "Checks"),
            this.findings ? findingList(this.findings) : spinner("Looking at the backup and the destination …"),
            h("details", null, h("summary", null, "Command"), codeBlock(shell(["vbackup", ...plan.argv]))),
            plan.isInPlace ? this.confirmation() : null,
        ];
    }

    confirmation() {
        const { name } = this.plan.domain;
        const typed = text(this.typed, {
            oninput: event => {
                this.typed = event.target.value;
                this.next.disabled = !this.isReady;
            },
        });
        return [
            alert("warning", `The disks of ${name} are overwritten`),
            form(field(`Type ${name} to confirm`, typed, "What its disks hold now and the backup does not is lost.")),
        ];
    }

    chain(disk) {
        const size = this.record.chain_sizes[disk.dev];
        return size ? `${bytes(size.size_bytes)} of ${plural(size.images, "image")}` : null;
    }

    // The frame.

    frame() {
        const heading = uniqueId("wizard");
        const close = { type: "button", class: "pf-v6-c-button pf-m-plain", "aria-label": "Close" };
        const element = h(
            "dialog",
            { class: "vb-dialog vb-wizard pf-v6-c-modal-box pf-m-lg", "aria-labelledby": heading },
            h(
                "form",
                {
                    class: "pf-v6-c-wizard",
                    onsubmit: event => {
                        event.preventDefault();
                        this.next.click();
                    },
                },
                h(
                    "div",
                    { class: "pf-v6-c-wizard__header" },
                    h(
                        "div",
                        { class: "pf-v6-c-wizard__close" },
                        h("button", { ...close, onclick: () => element.close() }, icon("close")),
                    ),
                    h(
                        "div",
                        { class: "pf-v6-c-wizard__title" },
                        h(
                            "h1",
                            { class: "pf-v6-c-wizard__title-text", id: heading },
                            `Restore ${this.plan.domain.name}`,
                        ),
                    ),
                ),
                h(
                    "div",
                    { class: "vb-wizard-content" },
                    h("nav", { class: "vb-wizard-nav", "aria-label": "Steps" }, this.nav),
                    h("div", { class: "vb-wizard-body" }, this.body),
                ),
                this.footer,
            ),
        );
        element.addEventListener("close", () => element.remove());
        return element;
    }

    drawNav() {
        const item = (name, number) => {
            const isCurrent = number === this.step;
            const attributes = {
                type: "button",
                class: `pf-v6-c-wizard__nav-link${isCurrent ? " pf-m-current" : ""}`,
                disabled: number > this.step,
                "aria-current": isCurrent ? "step" : null,
                onclick: () => this.move(number),
            };
            const words = h("span", { class: "pf-v6-c-wizard__nav-link-main" }, name);
            return h("li", { class: "pf-v6-c-wizard__nav-item" }, h("button", attributes, words));
        };
        this.nav.replaceChildren(...STEPS.map(item));
    }

    drawFooter() {
        const hadFocus = this.footer.contains(document.activeElement) && document.activeElement === this.next;
        const isLast = this.step === REVIEW;
        this.next = button(isLast ? "Restore" : "Next", () => (isLast ? this.begin() : this.move(this.step + 1)), {
            kind: isLast && this.plan.isInPlace ? "danger" : "primary",
            id: "wizard-next",
            disabled: !this.isReady,
        });
        this.footer.replaceChildren(
            button("Back", () => this.move(this.step - 1), { disabled: this.step === 0 }),
            this.next,
            button("Cancel", () => this.element.close(), { kind: "link" }),
        );
        if (hadFocus) this.next.focus();
    }

    draw() {
        this.drawNav();
        // What has the focus is a field of the same place in the new content.
        const fields = () => [...this.body.querySelectorAll("input, select, summary")];
        const focus = fields().indexOf(document.activeElement);
        const isOpen = this.body.querySelector("details")?.open;
        const pages = [this.backupPage, this.disksPage, this.destinationPage, this.reviewPage];
        swap(this.body, this.problem, pages[this.step].call(this));
        if (isOpen && this.body.querySelector("details")) this.body.querySelector("details").open = true;
        if (focus >= 0) fields()[focus]?.focus();
        this.drawFooter();
    }
}

const SPOKEN = { ok: "Good: ", warning: "Attention: ", danger: "Error: " };

function findingList(findings) {
    const items = findings.map(([kind, said]) => {
        const spoken = h("span", { class: "pf-v6-screen-reader" }, SPOKEN[kind]);
        return h("li", null, h("span", { class: `vb-${kind}` }, icon(kind)), h("span", null, spoken, said));
    });
    return h("ul", { class: "vb-steps", id: "checks" }, items);
}
