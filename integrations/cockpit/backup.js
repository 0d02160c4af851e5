// Begin a backup, and open a repository by hand.

import { CommandError, vbackup, virsh } from "./command.js";
import { choice, dialog, field, fieldset, form, select, text } from "./dialog.js";
import { h, uniqueId } from "./dom.js";
import { rememberRepository } from "./state.js";

const LEVELS = [
    ["auto", "Automatic: incremental where it is possible"],
    ["full", "Full"],
    ["incremental", "Incremental"],
    ["differential", "Differential"],
    ["copy", "Copy, outside the chain"],
];
const QUIESCE = [
    ["auto", "If its agent answers"],
    ["required", "Required: fail if it does not"],
    ["no", "No"],
];

// Ask how, and back up a machine: "domain" of the state, or null to ask which.
export function backupDialog(page, domain) {
    const names = uniqueId("names");
    const name = text("", { list: names, required: true, "aria-required": "true" });
    const list = h("datalist", { id: names });
    const repository = select(
        page.state.repositories.map(one => [one.path, one.name === one.path ? one.path : `${one.name} (${one.path})`]),
        domain?.path ?? page.state.repositories[0]?.path,
    );
    const level = select(LEVELS, "auto");
    const quiesce = select(QUIESCE, "auto");
    const speed = text("", { placeholder: "no limit" });
    const note = text();
    const { job } = domain ?? {};
    let asJob = Boolean(job);
    const options = form(
        domain?.path ? null : field("Repository", repository),
        field("Level", level),
        field("Freeze the guest's file systems", quiesce),
        field("Speed limit of each disk", speed, "Bytes per second, such as 50M."),
        field("Note", note, "A line that stays with the backup, such as: before the upgrade."),
    );
    options.hidden = asJob;
    const how = (value, name, help) =>
        choice("radio", name, {
            value,
            help,
            group: "how",
            checked: (value === "job") === asJob,
            onchange: () => {
                asJob = value === "job";
                options.hidden = asJob;
            },
        });
    if (!domain)
        virsh("list", "--all", "--name").then(
            found => list.append(...found.map(value => h("option", { value }))),
            () => null,
        );
    dialog(
        domain ? `Back up ${domain.name}` : "Back up a virtual machine",
        form(
            domain ? null : [field("Virtual machine", name, "Its name or UUID."), list],
            job
                ? fieldset(
                      "How",
                      how("job", `As job ${job} does`, "With its options and all of its steps, for this machine only."),
                      how("options", "Only a backup, with these options"),
                  )
                : null,
            options,
        ),
        [
            [
                "Back up",
                "primary",
                async () => {
                    const path = domain?.path || repository.value;
                    const key = domain?.key ?? (await knownAs(name.value));
                    const about = domain?.name ?? name.value;
                    await page.start({
                        kind: "backup",
                        title: `Backup of ${about}`,
                        domain: { path, key, name: about },
                        argv: asJob
                            ? ["run", "--json", "--progress", "json", "--domain", domain.key, "--", job]
                            : [
                                  "backup",
                                  "-r",
                                  path,
                                  "--json",
                                  "--progress",
                                  "json",
                                  "--level",
                                  level.value,
                                  "--quiesce",
                                  quiesce.value,
                                  ...(speed.value.trim() ? [`--speed=${speed.value.trim()}`] : []),
                                  ...(note.value ? [`--note=${note.value}`] : []),
                                  "--",
                                  key,
                              ],
                    });
                },
            ],
        ],
    );
}

// A name can contain a pattern's characters: the UUID means this machine and no other.
async function knownAs(name) {
    if (!name.trim()) throw new CommandError({ code: null, message: "Which virtual machine?" });
    try {
        return (await virsh("domuuid", "--", name))[0];
    } catch {
        return name;
    }
}

// Ask for the directory of a repository, and show what is in it from now on.
export function repositoryDialog(page) {
    const path = text("", { placeholder: "/srv/backup", required: true });
    async function use(command) {
        if (!path.value.startsWith("/")) throw new CommandError({ code: null, message: "Give an absolute path." });
        await vbackup([command, "-r", path.value]);
        rememberRepository(path.value.replace(/(.)\/+$/, "$1"));
        await page.refresh();
    }
    dialog(
        "Open a repository",
        form(
            field(
                "Directory",
                path,
                "An absolute path on this server. This browser remembers it; a configuration of vbackup is for good.",
            ),
        ),
        [
            ["Open", "primary", () => use("list")],
            ["Create", "secondary", () => use("init")],
        ],
    );
}
