//! MAC addresses for ports that have none.

/// A locally administered unicast address that is always the same for a name: the FNV-1a hash of the name, in
/// the space IEEE 802c leaves to administrators (`x2`).
pub fn mac_of_name(name: &str) -> [u8; 6] {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = name
        .bytes()
        .fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // Names differ in their last character mostly, which reaches the high bits least: fold them in.
    let [.., a, b, c, d, e] = (hash ^ (hash >> 29)).to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_unicast_stable_and_differ_by_name() {
        let first = mac_of_name("rnic0");
        assert_eq!(first, mac_of_name("rnic0"));
        assert_eq!(first[0] & 0b11, 0b10);
        let all: std::collections::BTreeSet<_> =
            (0..1000).map(|i| mac_of_name(&format!("rnic{i}"))).collect();
        assert_eq!(all.len(), 1000);
    }
}
