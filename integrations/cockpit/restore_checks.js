// What a restore would find, before it begins: nothing is changed by looking.

import { run, vbackup, virsh } from "./command.js";
import { bytes } from "./format.js";

// Returns [kind, sentence], ... of a plan. "record" is what "vbackup show" says of the backup.
export async function check(plan, record) {
    const looks = [backupIsWhole(plan), plan.isInPlace ? originalIsOff(plan) : nameIsFree(plan)];
    if (!plan.isInPlace && !plan.connect && !plan.pool) looks.push(thereIsRoom(plan, record));
    return (await Promise.all(looks)).flat();
}

async function backupIsWhole({ domain, point }) {
    try {
        const { findings } = await vbackup(["check", "-r", domain.path, "--", domain.key]);
        const about = findings.filter(one => one.affected.includes(point.id));
        if (about.length) return about.map(one => ["danger", `${one.what} ${one.remedy}`]);
        return [
            ["ok", "The backup and all that it depends on are there. Their data is verified while it is restored."],
        ];
    } catch (error) {
        return [["warning", error.message]];
    }
}

async function originalIsOff({ domain, libvirt }) {
    try {
        const [state] = await virsh(...libvirt, "domstate", "--", domain.key);
        if (state === "shut off") return [["ok", `${domain.name} is off.`]];
        return [["warning", `${domain.name} is ${state}; it has to be off. Shut it down first.`]];
    } catch (error) {
        return [["warning", error.message]];
    }
}

async function nameIsFree({ isDefined, newName, libvirt }) {
    if (!isDefined) return [];
    try {
        // Not "domuuid", whose failure does not tell a name that is free from a libvirt that cannot be reached.
        const names = await virsh(...libvirt, "list", "--all", "--name");
        return [
            names.includes(newName)
                ? ["warning", `There is a virtual machine ${newName} already.`]
                : ["ok", `No virtual machine is called ${newName}.`],
        ];
    } catch (error) {
        return error.code === "INSTALLATION" ? [] : [["warning", error.message]];
    }
}

async function thereIsRoom({ disks, parent }, record) {
    const wanted = record.disks.filter(disk => disks.get(disk.dev));
    const needed = wanted.reduce((sum, disk) => sum + (record.chain_sizes[disk.dev]?.size_bytes ?? 0), 0);
    try {
        const lines = (await run(["df", "--output=avail", "-B1", "--", parent])).trim().split("\n");
        const free = Number(lines.at(-1));
        return [
            [free > needed ? "ok" : "warning", `${bytes(free)} free in ${parent}; about ${bytes(needed)} are needed.`],
        ];
    } catch (error) {
        return [["warning", error.message]];
    }
}
