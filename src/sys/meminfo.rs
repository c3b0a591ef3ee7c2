//! `/proc/meminfo`: what the host has left.

use crate::units::ByteCount;

/// Memory that can be had without swapping; `None` when the host does not say.
pub(crate) fn available() -> Option<ByteCount> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn field(text: &str, name: &str) -> Option<ByteCount> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(ByteCount(kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes() {
        let text = "MemTotal:       24626640 kB\nMemAvailable:   24000000 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(ByteCount(24_000_000 * 1024)));
        assert_eq!(field(text, "SwapFree:"), None);
        assert_eq!(field("MemAvailable: x kB", "MemAvailable:"), None);
        assert!(available().is_some());
    }
}
