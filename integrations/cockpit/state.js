// What the page shows: the answer of "vbackup status", and of "vbackup list" for what it leaves out.

import { CommandError, vbackup } from "./command.js";

const OPENED = "vbackup:repositories";
const HEALTH = ["ok", "warning", "critical", "unknown"];

// Directories of repositories that the user has opened by hand: they are remembered in this browser.
export function openedRepositories() {
    try {
        const value = JSON.parse(localStorage.getItem(OPENED) ?? "[]");
        return Array.isArray(value) ? value.filter(path => typeof path === "string") : [];
    } catch {
        return [];
    }
}

export function rememberRepository(path) {
    localStorage.setItem(OPENED, JSON.stringify([...new Set([...openedRepositories(), path])]));
}

export function forgetRepository(path) {
    localStorage.setItem(OPENED, JSON.stringify(openedRepositories().filter(one => one !== path)));
}

export const healthOf = value => (typeof value === "number" ? HEALTH[value] : String(value).toLowerCase());

// What a health is called in labels and icons.
export const KIND = { ok: "ok", warning: "warning", critical: "danger", unknown: "unknown" };

export class State {
    constructor() {
        this.read = false;
        this.error = null; // of all of it
        this.isConfigured = false;
        this.jobs = [];
        this.domains = [];
        this.repositories = [];
        this.warnings = [];
        this.health = "unknown";
    }

    // Read all again. What could not be read is in "error" and in the repositories' faults.
    async refresh() {
        const found = { jobs: [], domains: [], repositories: [], warnings: [] };
        this.error = null;
        const whole = vbackup(["status"]).then(
            document => ({ document }),
            error => ({ error }),
        );
        const opened = await Promise.all(
            openedRepositories().map(async path => {
                try {
                    return { path, document: await vbackup(["status", "-r", path]) };
                } catch (error) {
                    return { path, error };
                }
            }),
        );
        const { document, error } = await whole;
        this.isConfigured = Boolean(document);
        if (document) this.take(found, document);
        else if (error.code !== "NO_CONFIG") this.error = error;
        for (const { path, document, error } of opened)
            if (found.repositories.some(one => one.path === path)) continue;
            else if (document) this.take(found, document);
            else
                found.repositories.push({
                    name: path,
                    path,
                    fault: error,
                    health: "critical",
                    reasons: [error.message],
                });
        for (const domain of found.domains) {
            domain.path = found.repositories.find(one => one.name === domain.repository)?.path ?? domain.repository;
            domain.key = domain.uuid ?? domain.name;
        }
        const order = domain => [-HEALTH.indexOf(domain.health), domain.name];
        found.domains.sort((one, other) => order(one)[0] - order(other)[0] || one.name.localeCompare(other.name));
        Object.assign(this, found);
        // What could not be found out, as a host that is silent, must not look well.
        const doubts = this.error || this.warnings.length ? [{ health: "warning" }] : [];
        const worst = [...this.domains, ...this.repositories, ...this.jobs, ...doubts].map(one =>
            ["ok", "unknown", "warning", "critical"].indexOf(one.health),
        );
        this.health = ["ok", "unknown", "warning", "critical"][Math.max(0, ...worst)];
        this.read = true;
    }

    take(found, document) {
        for (const kind of ["jobs", "domains", "repositories"])
            found[kind].push(
                ...document[kind].map(one => ({ ...one, health: healthOf(one.health), reasons: one.reasons ?? [] })),
            );
        found.warnings.push(...(document.warnings ?? []));
    }

    domain(path, key) {
        return this.domains.find(one => one.path === path && (one.key === key || one.name === key));
    }

    job(name) {
        return this.jobs.find(one => one.name === name);
    }
}

// The backups of a domain, newest first.
export async function points(path, key) {
    try {
        const document = await vbackup(["list", "-r", path, "--", key]);
        return { points: document.backups.reverse(), broken: document.broken };
    } catch (error) {
        if (error instanceof CommandError && error.code === "DOMAIN_NOT_FOUND") return { points: [], broken: [] };
        throw error;
    }
}
