// The restore wizard: which backup, how, where to; the plan and what speaks against it; and only then the restore.

import { run, vbackup, virsh } from "./command.js";
import { choice, errorAlert, field, fieldset, form, select, text } from "./dialog.js";
import { alert, button, codeBlock, h, icon, spinner, swap, table, uniqueId } from "./dom.js";
import { bytes, moment, plural, shell } from "./format.js";

const STEPS = ["Backup", "Disks", "Destination", "Review"];
const WAYS = [
    ["new", "As a new virtual machine", "Beside the original, with a new name, UUID and MAC addresses."],
    ["original", "In place of one that is gone", "With its own name and identity, to new files. libvirt must not have it any more."],
    ["live", "Live", "It starts at once from the backup, and its data is copied home while it runs."],
    ["in-place", "In place", "Overwrites the disks of the original, which has to be off, by writing only what differs."],
];

// domain: { path, key, name }; points: its backups, newest first; point: the one that is chosen first.
export function restoreWizard(page, domain, points, point) {
    const chosen = { point, way: "new", disks: new Map(), name: `${domain.name}-restored`, place: "directory", pool: "", directory: "/var/lib/libvirt/images",
                     format: "qcow2", define: true, start: false, keepOld: true, connect: "", typed: "" };
    let step = 0;
    let record = null; // what "vbackup show" says of the backup
    let pools = [];
    let findings = null; // of the plan: [kind, text]
    const heading = uniqueId("wizard");
    const element = h("dialog", { class: "vb-dialog vb-wizard pf-v6-c-modal-box pf-m-lg", "aria-labelledby": heading });
    const nav = h("ol", { class: "pf-v6-c-wizard__nav-list" });
    const body = h("div", { class: "pf-v6-c-wizard__main-body" });
    const problem = h("div", { "aria-live": "assertive" });
    const footer = h("footer", { class: "pf-v6-c-wizard__footer" });
    const isHere = () => chosen.way === "in-place";
    const isWhole = () => [...chosen.disks.values()].every(Boolean);
    // A new machine with some of the disks would have the others of the original, which two must not write to.
    const isDefined = () => chosen.way === "live" || (chosen.define && (isWhole() || chosen.way === "original"));
    const libvirt = () => chosen.connect ? ["-c", chosen.connect] : [];
    const directory = () => `${chosen.directory.replace(/\/+$/, "")}/${folder()}`;
    const folder = () => (chosen.way === "original" ? domain.name : chosen.name).replaceAll("/", "-");

    function argv() {
        const { way } = chosen;
        const some = [...chosen.disks].filter(([, wanted]) => wanted).map(([dev]) => dev);
        return [
            "restore", "-r", domain.path, ...libvirt(), "--json", "--progress", "json", "--backup", chosen.point.id,
            ...(isWhole() ? [] : ["--disk", ...some]),
            ...(isHere() ? ["--in-place", ...(chosen.keepOld ? ["--keep-old"] : [])] : [
                "--output", directory(), ...(way === "live" ? [] : ["--format", chosen.format]),
                ...(chosen.place === "pool" ? ["--pool", chosen.pool] : []),
                ...(way === "live" ? ["--live"] : isDefined() ? ["--define", ...(chosen.start ? ["--start"] : [])] : []),
                ...(way !== "original" && isDefined() ? ["--name", chosen.name] : []),
            ]),
            "--", domain.key,
        ];
    }

    async function load() {
        record = null;
        draw();
        const { point: wanted } = chosen;
        try {
            const shown = await vbackup(["show", "-r", domain.path, "--backup", wanted.id, "--", domain.key]);
            if (wanted !== chosen.point)
                return;
            record = shown;
            chosen.disks = new Map(record.disks.map(disk => [disk.dev, true]));
            problem.replaceChildren();
        } catch (error) {
            problem.replaceChildren(errorAlert(error));
        }
        draw();
    }

    async function loadPools() {
        pools = await virsh(...libvirt(), "pool-list", "--name").catch(() => []);
        pools = pools.map(name => name.trim()).filter(Boolean);
        if (!pools.includes(chosen.pool))
            chosen.pool = pools[0] ?? "";
        if (!pools.length)
            chosen.place = "directory";
        draw();
    }

    const pages = [
        () => form(
            field("Backup", select(points.filter(one => !one.states.includes("broken")).map(one => [one.id, `${moment(one.time)}, ${one.level}${one.note ? `: ${one.note}` : ""}`]),
                                   chosen.point.id, event => {
                                       chosen.point = points.find(one => one.id === event.target.value);
                                       load();
                                   }), chosen.point.id),
            fieldset("How", WAYS.map(([value, name, help]) => choice("radio", name, {
                value, help, group: "way", checked: chosen.way === value, onchange: () => {
                    chosen.way = value;
                    draw();
                } })))),
        () => !record ? spinner("Reading the backup …") : form(
            fieldset("Disks", record.disks.map(disk => choice("checkbox", `${disk.dev}, ${bytes(disk.virtual_size_bytes ?? disk.size_bytes)}`, {
                checked: chosen.disks.get(disk.dev), help: chain(disk), onchange: event => {
                    chosen.disks.set(disk.dev, event.target.checked);
                    draw();
                } }))),
            h("p", { class: "vb-quiet" }, isHere() ? "Other disks stay as they are."
                                          : chosen.way === "original" ? "Of other disks the definition names the files that the original had."
                                                                      : "A new machine needs all disks; some can be restored as files.")),
        () => isHere() ? form(
            choice("checkbox", "Keep old images", { checked: chosen.keepOld, onchange: event => { chosen.keepOld = event.target.checked },
                                                    help: "Of disks that have to be restored in full, as NAME.before-ID." })) : form(
            chosen.way === "original" ? null : field("Name of the new machine", text(chosen.name, { oninput: event => { chosen.name = event.target.value } })),
            pools.length ? fieldset("Disks go to", [["directory", "A directory"], ["pool", "A storage pool of libvirt"]].map(([value, name]) => choice("radio", name, {
                value, group: "place", checked: chosen.place === value, onchange: () => {
                    chosen.place = value;
                    draw();
                } }))) : null,
            chosen.place === "pool" ? field("Storage pool", select(pools.map(name => [name, name]), chosen.pool, event => { chosen.pool = event.target.value })) : null,
            field("Directory", text(chosen.directory, { oninput: event => { chosen.directory = event.target.value } }),
                  "A new directory named after the machine is made in it; nothing is overwritten. QEMU has to be able to enter it."),
            chosen.way === "live" ? null : field("Image format", select([["qcow2", "qcow2"], ["raw", "raw"]], chosen.format, event => { chosen.format = event.target.value })),
            chosen.way === "live" ? null : [
                choice("checkbox", "Define it in libvirt", { checked: isDefined(), disabled: chosen.way === "new" && !isWhole(), onchange: event => {
                    chosen.define = event.target.checked;
                    draw();
                }, help: chosen.way === "new" && !isWhole() ? "Only with all disks." : null }),
                choice("checkbox", "Start it", { checked: isDefined() && chosen.start, disabled: !isDefined(), onchange: event => { chosen.start = event.target.checked } })],
            field("Host", text(chosen.connect, { placeholder: "this server", oninput: event => { chosen.connect = event.target.value }, onchange: loadPools }),
                  "Another host by its libvirt URI, such as qemu+ssh://root@hv2/system. Pool and directory are there then.")),
        review,
    ];

    const chain = disk => {
        const size = record.chain_sizes[disk.dev];
        return size ? `${plural(size.images, "image")}, ${bytes(size.size_bytes)} to read` : null;
    };

    function review() {
        const disks = record.disks.filter(disk => chosen.disks.get(disk.dev));
        const where = disk => isHere() ? "its own place" : chosen.place === "pool" ? `pool ${chosen.pool}` : `${directory()}/${disk.dev}.${chosen.way === "live" ? "qcow2" : chosen.format}`;
        const confirmation = isHere() ? field(`Type ${domain.name} to confirm`, text(chosen.typed, { oninput: event => {
            chosen.typed = event.target.value;
            go.disabled = !isConfirmed();
        } }), "What its disks hold now and the backup does not is lost.") : null;
        return h("div", null,
                 h("p", null, WAYS.find(([way]) => way === chosen.way)[1], ": the state of ", h("strong", null, moment(chosen.point.time)),
                   chosen.way === "in-place" || chosen.way === "original" ? ` as ${domain.name}.` : ` as ${chosen.name}.`),
                 table("Plan", ["Disk", "Size", "Reads", "Goes to"], disks.map(disk => [disk.dev, bytes(disk.virtual_size_bytes ?? disk.size_bytes), chain(disk), h("span", { class: "vb-path" }, where(disk))])),
                 h("h3", null, "Checks"),
                 findings ? h("ul", { class: "vb-steps", id: "checks" }, findings.map(([kind, said]) => h("li", null, h("span", { class: `vb-${kind}` }, icon(kind)),
                                                                                                     h("span", null, h("span", { class: "pf-v6-screen-reader" }, kind === "ok" ? "Good: " : "Attention: "), said)))) : spinner("Looking at the backup and the destination …"),
                 h("details", null, h("summary", null, "Command"), codeBlock(shell(["vbackup", ...argv()]))),
                 isHere() ? alert("warning", `The disks of ${domain.name} are overwritten`) : null,
                 confirmation ? form(confirmation) : null);
    }

    const isConfirmed = () => !isHere() || chosen.typed === domain.name;

    // What a restore would find: nothing is changed by looking.
    async function check() {
        findings = null;
        const wanted = JSON.stringify(argv());
        const found = await Promise.all([backupIsWhole(), isHere() ? originalIsOff() : nameIsFree(), isHere() || chosen.connect ? null : room()]);
        if (wanted !== JSON.stringify(argv()) || step !== 3)
            return;
        findings = found.flat().filter(Boolean);
        draw();
    }

    async function backupIsWhole() {
        try {
            const { findings: said } = await vbackup(["check", "-r", domain.path, "--", domain.key]);
            const ids = new Set(Object.values(record.chains).flat());
            const about = (said ?? []).filter(one => ids.has(one.backup ?? one.id));
            return about.length ? about.map(one => ["warning", one.message]) : [["ok", "The backup and all that it depends on are there. Their data is verified while it is restored."]];
        } catch (error) {
            return [["warning", error.message]];
        }
    }

    async function originalIsOff() {
        try {
            const [state] = await virsh(...libvirt(), "domstate", "--", domain.key);
            return state === "shut off" ? [["ok", `${domain.name} is off.`]] : [["warning", `${domain.name} is ${state}; it has to be off. Shut it down first.`]];
        } catch (error) {
            return [["warning", error.message]];
        }
    }

    async function nameIsFree() {
        if (!isDefined())
            return null;
        const name = chosen.way === "original" ? domain.name : chosen.name;
        try {
            await virsh(...libvirt(), "domuuid", "--", name);
            return [["warning", `There is a virtual machine ${name} already.`]];
        } catch (error) {
            return error.code === "INSTALLATION" ? null : [["ok", `No virtual machine is called ${name}.`]];
        }
    }

    async function room() {
        const needed = record.disks.filter(disk => chosen.disks.get(disk.dev)).reduce((sum, disk) => sum + (record.chain_sizes[disk.dev]?.size_bytes ?? 0), 0);
        if (chosen.place === "pool")
            return null;
        try {
            const free = Number((await run(["df", "--output=avail", "-B1", "--", chosen.directory])).trim().split("\n").at(-1));
            return [[free > needed ? "ok" : "warning", `${bytes(free)} free in ${chosen.directory}; about ${bytes(needed)} are needed.`]];
        } catch (error) {
            return [["warning", error.message]];
        }
    }

    // Why one cannot go on from this step; null if one can.
    function obstacle() {
        if (step === 1 && ![...chosen.disks.values()].some(Boolean))
            return "Choose at least one disk.";
        if (step === 1 && chosen.way === "live" && !isWhole())
            return "A live restore needs all disks.";
        if (step === 2 && !isHere()) {
            if (chosen.way !== "original" && !chosen.name.trim())
                return "The new machine needs a name.";
            if (!chosen.directory.startsWith("/"))
                return "The directory has to be an absolute path.";
        }
        return null;
    }

    async function begin() {
        go.disabled = true;
        go.classList.add("pf-m-in-progress");
        try {
            const known = await page.start({ kind: "restore", title: `Restore of ${domain.name}`, domain, argv: argv() });
            element.close();
            page.go("work", known.id);
        } catch (error) {
            problem.replaceChildren(errorAlert(error));
            go.disabled = false;
        } finally {
            go.classList.remove("pf-m-in-progress");
        }
    }

    function move(to) {
        const why = to > step ? obstacle() : null;
        problem.replaceChildren(...(why ? [alert("danger", why)] : []));
        if (why)
            return;
        step = to;
        draw();
        body.querySelector("input, select, h3")?.focus();
        if (step === 3)
            check();
    }

    let go = null;

    function draw() {
        nav.replaceChildren(...STEPS.map((name, number) => h("li", { class: "pf-v6-c-wizard__nav-item" }, h(
            "button", { type: "button", class: `pf-v6-c-wizard__nav-link${number === step ? " pf-m-current" : ""}`, disabled: number > step,
                        "aria-current": number === step ? "step" : null, onclick: () => move(number) }, h("span", { class: "pf-v6-c-wizard__nav-link-main" }, name)))));
        // What has the focus is a field of the same place in the new content.
        const fields = () => [...body.querySelectorAll("input, select")];
        const focus = fields().indexOf(document.activeElement);
        swap(body, problem, pages[step]());
        if (focus >= 0)
            fields()[focus]?.focus();
        const next = button(step === 3 ? "Restore" : "Next", () => step === 3 ? begin() : move(step + 1), { kind: step === 3 && isHere() ? "danger" : "primary", id: "wizard-next",
                                                                                                    disabled: step === 3 ? !isConfirmed() : step > 0 && !record });
        go = next;
        const hadFocus = footer.contains(document.activeElement) && document.activeElement.id === "wizard-next";
        footer.replaceChildren(button("Back", () => move(step - 1), { disabled: step === 0 }), next, button("Cancel", () => element.close(), { kind: "link" }));
        if (hadFocus)
            next.focus();
    }

    element.append(
        h("form", { class: "pf-v6-c-wizard", onsubmit: event => {
            event.preventDefault();
            if (!go.disabled)
                go.click();
        } },
          h("div", { class: "pf-v6-c-wizard__header" },
            h("div", { class: "pf-v6-c-wizard__close" }, h("button", { type: "button", class: "pf-v6-c-button pf-m-plain", "aria-label": "Close", onclick: () => element.close() }, icon("close"))),
            h("div", { class: "pf-v6-c-wizard__title" }, h("h1", { class: "pf-v6-c-wizard__title-text", id: heading }, `Restore ${domain.name}`))),
          h("div", { class: "vb-wizard-content" },
            h("nav", { class: "vb-wizard-nav", "aria-label": "Steps" }, nav),
            h("div", { class: "vb-wizard-body" }, body)),
          footer));
    element.addEventListener("close", () => element.remove());
    document.body.append(element);
    draw();
    element.showModal();
    load();
    loadPools();
}
