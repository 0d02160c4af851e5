// What is to be restored, how and where to: the choices of the wizard, and the command that they make.

export const WAYS = [
    ["new", "As a new virtual machine", "Beside the original, with a new name, UUID and MAC addresses."],
    [
        "original",
        "In place of one that is gone",
        "With its own name and identity, to new files. libvirt must not have it any more.",
    ],
    ["live", "Live", "It starts at once from the backup, and its data is copied home while it runs."],
    [
        "in-place",
        "In place",
        "Overwrites the disks of the original, which has to be off, by writing only what differs.",
    ],
];

export class Plan {
    // domain: { path, key, name }; point: the backup.
    constructor(domain, point) {
        this.domain = domain;
        this.point = point;
        this.way = "new";
        this.disks = new Map(); // by dev: whether it is wanted
        this.name = `${domain.name}-restored`;
        this.pool = null; // name of libvirt's pool that the disks go to; null: the directory
        this.parent = "/var/lib/libvirt/images";
        this.format = "qcow2";
        this.define = true;
        this.start = false;
        this.keepOld = true;
        this.connect = ""; // libvirt's URI of another host
    }

    get isInPlace() {
        return this.way === "in-place";
    }

    get isWhole() {
        return [...this.disks.values()].every(Boolean);
    }

    // A new machine with some of the disks would have the others of the original, which two must not write to.
    get canBeDefined() {
        return this.isWhole || this.way === "original";
    }

    get isDefined() {
        return this.way === "live" || (!this.isInPlace && this.define && this.canBeDefined);
    }

    // What the restored machine is called.
    get newName() {
        return this.isInPlace || this.way === "original" ? this.domain.name : this.name;
    }

    get directory() {
        return `${this.parent.replace(/\/+$/, "")}/${this.newName.replaceAll("/", "-")}`;
    }

    get libvirt() {
        return this.connect ? ["-c", this.connect] : [];
    }

    // Where a disk will be, for people.
    place(dev) {
        if (this.isInPlace) return "its own place";
        return this.pool ? `pool ${this.pool}` : `${this.directory}/${dev}.${this.format}`;
    }

    // Arguments of vbackup.
    get argv() {
        const some = [...this.disks].filter(([, wanted]) => wanted).map(([dev]) => dev);
        return [
            "restore",
            ...["-r", this.domain.path, ...this.libvirt, "--json", "--progress", "json", "--backup", this.point.id],
            ...(this.isWhole ? [] : ["--disk", ...some]),
            ...(this.isInPlace ? ["--in-place", ...(this.keepOld ? ["--keep-old"] : [])] : this.destination),
            ...["--", this.domain.key],
        ];
    }

    get destination() {
        const words = ["--output", this.directory];
        if (this.pool) words.push(`--pool=${this.pool}`);
        if (this.way === "live") words.push("--live");
        else words.push("--format", this.format);
        if (this.isDefined && this.way !== "live") words.push("--define", ...(this.start ? ["--start"] : []));
        if (this.isDefined && this.way !== "original") words.push(`--name=${this.name}`);
        return words;
    }

    // Why the disks that are chosen will not do; null if they will.
    get faultOfDisks() {
        if (![...this.disks.values()].some(Boolean)) return "Choose at least one disk.";
        return this.way === "live" && !this.isWhole ? "A live restore needs all disks." : null;
    }

    get faultOfDestination() {
        if (this.isInPlace) return null;
        if (!this.newName.trim()) return "The new machine needs a name.";
        return this.parent.startsWith("/") ? null : "The directory has to be an absolute path.";
    }
}
