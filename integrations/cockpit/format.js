// Values as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(number) {
    if (number === null || number === undefined) return "";
    let unit = 0;
    while (number >= 1024 && unit < UNITS.length - 1) {
        number /= 1024;
        unit++;
    }
    return `${unit ? number.toFixed(1) : number} ${UNITS[unit]}`;
}

export function duration(seconds) {
    if (seconds < 60) return `${Math.round(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    if (minutes < 60) return `${minutes} min`;
    const hours = Math.round(seconds / 3600);
    if (hours < 48) return `${hours} h`;
    return `${Math.round(seconds / 86400)} days`;
}

export const date = value => (typeof value === "number" ? new Date(value * 1000) : new Date(value));

// Year first, as in ids: 2026-11-30 10:15.
export function moment(value) {
    const time = date(value);
    const two = number => String(number).padStart(2, "0");
    return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${two(time.getHours())}:${two(time.getMinutes())}`;
}

export function ago(value) {
    const seconds = (Date.now() - date(value)) / 1000;
    if (seconds < -60) return `in ${duration(-seconds)}`;
    return seconds < 60 ? "just now" : `${duration(seconds)} ago`;
}

export const plural = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

// Words as they would be typed in a shell, for people to read and to copy.
export function shell(argv) {
    return argv.map(word => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ");
}
