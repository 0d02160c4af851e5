// Dark and light as the user has chosen in Cockpit's menu, or as the desktop is. A script of its own, loaded first, so that
// nothing is painted in the wrong colours.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function set(style) {
    style ??= localStorage.getItem("shell:style") ?? "auto";
    document.documentElement.classList.toggle(
        "pf-v6-theme-dark",
        style === "dark" || (style === "auto" && dark.matches),
    );
}

window.addEventListener("storage", event => event.key === "shell:style" && set());
window.addEventListener("cockpit-style", event => set(event.detail.style));
dark.addEventListener("change", () => set());
set();
