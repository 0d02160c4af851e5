// Run vbackup and other programs of the server, as the user who has logged in, or as root where Cockpit lets that user.

const cockpit = window.cockpit;

// What a command says when it fails: vbackup.error/1, or what comes nearest to it.
export class CommandError extends Error {
    constructor({ code = "FAILED", message, status = 1, retry = "never" }) {
        super(message);
        this.code = code;
        this.status = status;
        this.retry = retry;
    }
}

const RETRY = {
    same: "Try the same again.",
    later: "Try again when something else has ended, or there is room.",
    full: "Take a full backup.",
    begin: "Begin a new session.",
};

export const retryAdvice = error => RETRY[error.retry] ?? "";

const PROBLEMS = {
    "not-found": program => ({
        code: "INSTALLATION",
        message: `The command ${program} is not installed on this server.`,
    }),
    "access-denied": () => ({
        code: "ACCESS_DENIED",
        message: "You may not do this. Turn on administrative access in Cockpit's top bar.",
    }),
    disconnected: () => ({ code: "DISCONNECTED", retry: "same", message: "The connection to the server was lost." }),
    terminated: () => ({ code: "DISCONNECTED", retry: "same", message: "Cockpit's session on the server has ended." }),
};

function failure(program, exception, output) {
    const known = PROBLEMS[exception.problem];
    if (known) return new CommandError(known(program));
    try {
        const document = JSON.parse(output);
        if (document.schema?.startsWith("vbackup.error/")) return new CommandError(document);
    } catch {
        /* It is no document: what was said on standard error will do. */
    }
    return new CommandError({
        message: exception.message || `${program} has failed.`,
        status: exception.exit_status ?? 1,
    });
}

// Run a program; returns what it prints. Raises CommandError. A signal that is aborted ends it.
export async function run(argv, { input, signal, onData, superuser = "try" } = {}) {
    const chunks = [];
    const process = cockpit.spawn(argv, { superuser, err: "message", environ: ["LC_ALL=C.UTF-8"] });
    process.stream(data => {
        chunks.push(data);
        onData?.(data);
    });
    if (input !== undefined) process.input(input);
    const end = () => process.close("cancelled");
    signal?.addEventListener("abort", end, { once: true });
    try {
        await process;
    } catch (exception) {
        throw failure(argv[0], exception, chunks.join(""));
    } finally {
        signal?.removeEventListener("abort", end);
    }
    return chunks.join("");
}

// Run vbackup; returns its document. A command whose exit status says "not everything is well" prints one, too.
export async function vbackup(argv, { signal } = {}) {
    let text = "";
    const options = argv.includes("--") ? argv.indexOf("--") : argv.length;
    try {
        text = await run(["vbackup", ...argv.slice(0, options), "--json", ...argv.slice(options)], {
            signal,
            onData: data => {
                text += data;
            },
        });
    } catch (error) {
        const document = parsed(text);
        if (!document || document.schema?.startsWith("vbackup.error/")) throw error;
        return document;
    }
    const document = parsed(text);
    if (!document) throw new CommandError({ message: `vbackup ${argv[0]} has printed no document.` });
    return document;
}

function parsed(text) {
    try {
        return JSON.parse(text);
    } catch {
        return null;
    }
}

// virsh is libvirt's own client; without it the page does without what only it knows.
export async function virsh(...argv) {
    const text = await run(["virsh", "--quiet", ...argv]);
    return text.split("\n").filter(line => line !== "");
}
