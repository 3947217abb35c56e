//! What this process is called among the instances.

/// The machine's name, the process's number and chance: no two runs have the same, so a lease of an
/// earlier run is another's.
pub fn own() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let kept = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let mut host: String = host.trim().chars().filter(kept).take(40).collect();
    if host.is_empty() {
        host.push_str("instance");
    }
    let mut chance = [0u8; 4];
    // Without chance the process's number must do.
    let _ = getrandom::fill(&mut chance);
    let chance = u32::from_be_bytes(chance);
    let name = format!("{host}-{}-{chance:08x}", std::process::id());
    name.to_ascii_lowercase()
}
