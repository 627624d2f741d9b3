//! VLAN tags in frames.

/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// The TCI, the two addresses and the rest of a frame with an 802.1Q or 802.1ad tag.
pub(super) fn split_tag(frame: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = frame.split_at_checked(12)?;
    let (tag, rest) = rest.split_at_checked(TAG)?;
    let tpid = u16::from_be_bytes([tag[0], tag[1]]);
    matches!(tpid, 0x8100 | 0x88A8).then_some((u16::from_be_bytes([tag[2], tag[3]]), head, rest))
}

pub(super) fn with_tag(mut frame: Vec<u8>, vlan: Option<u16>) -> Vec<u8> {
    if let Some(vlan) = vlan
        && frame.len() >= 12
    {
        let [high, low] = vlan.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
    }
    frame
}
