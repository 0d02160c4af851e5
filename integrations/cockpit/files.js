// What is in a backup: files of the guest to look at and to fetch, and its disks as files to mount.

import { run, vbackup } from "./command.js";
import { dialog, errorAlert, field, form, text } from "./dialog.js";
import { crumbs } from "./domain.js";
import { alert, button, card, descriptions, h, icon, link, spinner, swap, table } from "./dom.js";
import { bytes, moment } from "./format.js";
import { save } from "./works.js";

// Names can have bytes that are not UTF-8, which are lone surrogates here. Cockpit's protocol does not take them.
const STRANGE = /[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g;
const readable = name => name.replace(STRANGE, "\uFFFD");

export function files(page, path, key, id, where = "") {
    const element = h("div", { class: "vb-view" });
    const leaving = new AbortController();
    let listing = null;
    let error = null;
    let mounts = [];
    let mountError = null;
    const begun = new Set(); // ids of downloads, since others of this user may have begun some too

    const domain = () => ({ path, key, name: page.state.domain(path, key)?.name ?? listing?.domain.name ?? key });
    const common = ["-r", path, "--backup", id];
    const here = at => page.href("files", path, key, id, at);
    const baseName = name => name.split("/").at(-1);

    async function load() {
        listing = error = null;
        view.update();
        try {
            listing = await vbackup(["ls", ...common, "--", key, ...(where ? [where] : [])], {
                signal: leaving.signal,
            });
        } catch (exception) {
            error = exception;
        }
        if (!leaving.signal.aborted) view.update();
    }

    // A mount of vbackup's is files that a program shows, named after the disks.
    async function loadMounts() {
        try {
            const lines = await run(["findmnt", "--json", "--output", "TARGET,FSTYPE,SOURCE"], {});
            const all = JSON.parse(lines).filesystems.flatMap(function flat(one) {
                return [one, ...(one.children ?? []).flatMap(flat)];
            });
            const disks = all.filter(one => one.fstype.startsWith("fuse") && one.target.endsWith(".raw"));
            mounts = [...new Set(disks.map(one => one.target.slice(0, one.target.lastIndexOf("/"))))].map(
                directory => ({
                    directory,
                    files: disks.filter(one => one.target.startsWith(`${directory}/`)).map(one => one.target),
                }),
            );
        } catch {
            mounts = [];
        }
        view.update();
    }

    function mountDialog() {
        const directory = text(`/mnt/${domain().name.replaceAll("/", "-")}-${id}`);
        dialog(
            "Mount the disks of this backup",
            form(
                field(
                    "Directory",
                    directory,
                    "An empty directory, or a new one. Each disk appears in it as a raw file that is read only.",
                ),
            ),
            [
                [
                    "Mount",
                    "primary",
                    async () => {
                        await vbackup(["mount", ...common, "--", key, directory.value]);
                        await loadMounts();
                    },
                ],
            ],
        );
    }

    async function umount(directory) {
        mountError = null;
        try {
            await vbackup(["umount", "-r", path, "--", directory]);
        } catch (exception) {
            mountError = exception;
        }
        await loadMounts();
    }

    // The file is copied out of the backup first, so that what is saved is whole or not there at all.
    async function download(entry, isDirectory) {
        const name = (baseName(entry.path) || "files") + (isDirectory ? ".tar" : "");
        const full = `${where.slice(0, where.indexOf(":"))}:${entry.path}`;
        const known = await page.start({
            kind: "download",
            title: `Download of ${entry.path}`,
            name,
            domain: domain(),
            argv: isDirectory
                ? ["cp", ...common, "--progress", "json", "--tar", "--", key, full]
                : ["cat", ...common, "--progress", "json", "--", key, full],
        });
        begun.add(known.id);
    }

    function entryRow(entry) {
        const isDirectory = entry.mode.startsWith("d");
        const isFile = entry.mode.startsWith("-");
        const name = readable(baseName(entry.path));
        const isStrange = STRANGE.test(entry.path);
        STRANGE.lastIndex = 0;
        return [
            h(
                "span",
                { class: "vb-file" },
                icon(isDirectory ? "folder" : isFile ? "file" : "link"),
                isDirectory && !isStrange
                    ? link(name, here(`${where.slice(0, where.indexOf(":"))}:${entry.path}`))
                    : name,
                entry.target ? h("span", { class: "vb-quiet" }, ` → ${readable(entry.target)}`) : null,
            ),
            isFile ? bytes(entry.size_bytes) : "",
            moment(entry.mtime),
            h("code", null, entry.mode),
            isFile || isDirectory
                ? button("Download", () => download(entry, isDirectory), {
                      small: true,
                      kind: "link",
                      disabled: isStrange,
                      title: isStrange ? "Its name is not UTF-8: download the directory that it is in." : null,
                      "aria-label": `Download ${name}`,
                  })
                : "",
        ];
    }

    function content() {
        if (error) return errorAlert(error);
        if (!listing) return spinner("The backup is opened by an appliance, which takes some seconds …");
        if (!where)
            return table(
                "File systems",
                ["File system", "Type", "Size"],
                listing.file_systems.map(one => [
                    h("span", { class: "vb-file" }, icon("folder"), link(one.name, here(`${one.name}:/`))),
                    one.type,
                    bytes(one.size_bytes),
                ]),
            );
        const entries = [...listing.entries].sort(
            (one, other) => other.mode.startsWith("d") - one.mode.startsWith("d") || one.path.localeCompare(other.path),
        );
        return entries.length
            ? table("Files", ["Name", "Size", "Changed", "Mode", ""], entries.map(entryRow))
            : h("p", { class: "vb-quiet vb-wait" }, "This directory is empty.");
    }

    function parts() {
        if (!where) return h("p", null, "All file systems");
        const colon = where.indexOf(":");
        const [system, names] = [
            where.slice(0, colon),
            where
                .slice(colon + 1)
                .split("/")
                .filter(Boolean),
        ];
        return h(
            "p",
            { class: "vb-path", id: "where" },
            link("All file systems", here("")),
            " › ",
            link(system, here(`${system}:/`)),
            names.map((name, number) => [
                " / ",
                link(name, here(`${system}:/${names.slice(0, number + 1).join("/")}`)),
            ]),
        );
    }

    const view = {
        element,
        close: () => leaving.abort(),
        ended(known) {
            // What was begun here is saved at once; otherwise its record offers it.
            if (begun.delete(known.id) && known.status === 0) save(`${known.path}/result`, known.name);
        },
        update() {
            swap(
                element,
                crumbs(page, [domain().name, page.href("domain", path, key)], [id, null]),
                h(
                    "div",
                    { class: "vb-title" },
                    h("h1", null, "Files"),
                    h("div", { class: "vb-buttons" }, button("Mount the disks …", mountDialog, { id: "mount" })),
                ),
                mountError ? errorAlert(mountError) : null,
                mounts.map(mount =>
                    card(
                        "Mounted",
                        descriptions(
                            ["Directory", h("span", { class: "vb-path" }, mount.directory)],
                            [
                                "Disks",
                                h(
                                    "ul",
                                    null,
                                    mount.files.map(file => h("li", { class: "vb-path" }, file)),
                                ),
                            ],
                        ),
                        h(
                            "p",
                            null,
                            button("Unmount", () => umount(mount.directory), { id: `umount-${mount.directory}` }),
                        ),
                    ),
                ),
                h("section", { class: "pf-v6-c-card" }, h("div", { class: "pf-v6-c-card__body" }, parts()), content()),
                page.works.running.filter(one => one.kind === "download").map(one => alert("info", `${one.title} …`)),
            );
        },
    };
    load();
    loadMounts();
    return view;
}
