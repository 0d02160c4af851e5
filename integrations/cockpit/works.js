// Long work: it is started with work.py, goes on without this page, and is found again and followed by its record.

import { CommandError, run } from "./command.js";

const cockpit = window.cockpit;

const RETRY_MS = 5000;

let program = null;

async function work(argv, input) {
    program ??= fetch("work.py").then(answer => answer.text());
    return JSON.parse(await run(["python3", "-I", "-c", await program, ...argv], { input }));
}

// The document in which a work's command has said why it failed.
export function failureOf(known) {
    if (known.state === "lost")
        return new CommandError({
            message: "It was killed, or the server went down. What it had begun is cleaned up by the next backup.",
            retry: "same",
        });
    if (known.state !== "ended" || known.status === 0) return null;
    if (known.result?.schema?.startsWith("vbackup.error/")) return new CommandError(known.result);
    const faults = runFaults(known.result);
    if (faults.length)
        return new CommandError({
            code: faults[0].code,
            message: faults.map(one => one.message).join(" "),
            status: known.status,
        });
    const lines = (known.progress ?? []).filter(line => !line.startsWith("{"));
    return new CommandError({ message: known.reason ?? lines.at(-1) ?? "It has failed.", status: known.status });
}

// What has failed in a run of jobs: each fault once, whether a step or a domain has it.
function runFaults(result) {
    const runs = result?.runs ?? [];
    const faults = runs.flatMap(one => [
        ...one.steps.flatMap(step => step.faults),
        ...one.domains.map(domain => domain.fault).filter(Boolean),
    ]);
    const missed = (result?.not_run ?? []).map(one => one.error).filter(Boolean);
    return [...new Map([...missed, ...faults].map(one => [one.message, one])).values()];
}

// What the lines of --progress json have said so far.
export class Progress {
    constructor() {
        this.disks = new Map();
        this.steps = [];
        this.rest = "";
    }

    // Text as it comes: a line can be in two pieces.
    add(text) {
        const lines = (this.rest + text).split("\n");
        this.rest = lines.pop();
        lines.forEach(line => this.addLine(line));
    }

    addLine(line) {
        let event;
        try {
            event = JSON.parse(line);
        } catch {
            if (line.trim()) this.steps.push({ kind: "text", message: line });
            return;
        }
        if (event.event === "progress") this.disks.set([event.domain ?? "", event.dev, event.phase].join("\0"), event);
        else if (event.message)
            this.steps.push({ kind: event.event, time: event.time, domain: event.domain, message: event.message });
    }

    get total() {
        const disks = [...this.disks.values()];
        const phase = disks.at(-1)?.phase;
        const sum = key => disks.filter(disk => disk.phase === phase).reduce((all, disk) => all + disk[key], 0);
        return { done: sum("done_bytes"), total: sum("total_bytes") };
    }
}

// All works of this user, and those that run followed. Calls "changed" when the list is new, "moved" when work has
// reported something, and "ended" with what has ended.
export class Works {
    constructor({ changed, moved, ended }) {
        this.changed = changed;
        this.moved = moved;
        this.ended = ended;
        this.list = [];
        this.progress = new Map(); // by id, of those that run
        this.awaited = new Set(); // ids of those whose end is not known yet
        this.error = null;
        this.watching = null;
    }

    async refresh() {
        try {
            const answer = await work(["list"]);
            this.list = answer.works;
            this.error = null;
            this.watch(answer.directory);
        } catch (error) {
            this.error = error;
        }
        for (const known of this.list) {
            if (known.state === "running") {
                this.awaited.add(known.id);
                if (!this.progress.has(known.id)) this.follow(known);
            } else if (this.awaited.delete(known.id)) {
                this.progress.delete(known.id);
                this.ended(known);
            }
        }
        this.changed();
    }

    // Work that somebody else begins, in another window, shall appear here too.
    watch(directory) {
        if (this.watching) return;
        this.watching = cockpit.channel({ payload: "fswatch1", path: directory, superuser: "try" });
        let waiting = null;
        this.watching.addEventListener("message", () => {
            clearTimeout(waiting);
            waiting = setTimeout(() => this.refresh(), 200);
        });
        this.watching.addEventListener("close", () => {
            this.watching = null;
        });
    }

    // asked: { kind, title, argv, ... }; returns the record.
    async start(asked) {
        let known;
        try {
            known = await work(["start"], JSON.stringify({ version: 1, ...asked }));
        } catch (error) {
            if (error.code === "DISCONNECTED")
                error.message += " It may have begun: reload this page, and Activity shows it.";
            throw error;
        }
        this.awaited.add(known.id);
        await this.refresh();
        return known;
    }

    async follow(known) {
        const progress = new Progress();
        this.progress.set(known.id, progress);
        try {
            const pid = await this.pid(known);
            // Where systemd takes longer: asked again, for the end of what nobody follows would never be seen.
            if (!pid) throw new CommandError({ message: "It has not begun yet." });
            await run(
                ["tail", "--lines=+1", "--follow", "--sleep-interval=0.2", `--pid=${pid}`, `${known.path}/progress`],
                {
                    onData: text => {
                        progress.add(text);
                        this.moved();
                    },
                },
            );
        } catch (error) {
            if (error.code === "DISCONNECTED") return; // The page says so; what was seen last stays.
            await new Promise(resolve => setTimeout(resolve, RETRY_MS));
        }
        this.progress.delete(known.id);
        await this.refresh();
    }

    // Of the process that does the work. systemd takes a moment until it begins.
    async pid(known) {
        for (let tries = 0; tries < 50; tries++) {
            const text = await cockpit.file(`${known.path}/lock`, { superuser: "try" }).read();
            if (text?.trim()) return text.trim();
            await new Promise(resolve => setTimeout(resolve, 200));
        }
        return null;
    }

    show(id) {
        return work(["show", id]);
    }

    async stop(id) {
        await work(["stop", id]);
    }

    async remove(id) {
        await work(["remove", id]);
        await this.refresh();
    }

    get running() {
        return this.list.filter(known => known.state === "running");
    }
}

// Let the browser save a file of the server under this name.
export function save(path, name) {
    const asked = new TextEncoder().encode(
        JSON.stringify({
            payload: "fsread1",
            binary: "raw",
            path,
            superuser: "try",
            max_read_size: Number.MAX_SAFE_INTEGER,
            external: {
                "content-disposition": `attachment; filename*=UTF-8''${encodeURIComponent(name)}`,
                "content-type": "application/octet-stream",
            },
        }),
    );
    const query = window.btoa(String.fromCharCode(...asked));
    const address = new URL(cockpit.transport.uri(`channel/${cockpit.transport.csrf_token}`)).pathname;
    const anchor = document.createElement("a");
    anchor.href = `${address}?${query}`;
    anchor.download = name;
    anchor.click();
}
