//! UDP as RoCEv2 uses it, and the choice of its source port (A17.3.2).

/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;

/// UDP source port of a connection: in 0xC000 to 0xFFFF, spread so that routers balance flows, constant for the QP.
///
/// It is taken from the 20-bit `flow_label` of the address vector when that is not zero, else from the two QP numbers;
/// it is the same whichever of the two is local, so that both directions of a connection take the same path.
pub const fn udp_source_port(flow_label: u32, local_qpn: u32, remote_qpn: u32) -> u16 {
    let label = flow_label & 0x000F_FFFF;
    let entropy = if label != 0 {
        label ^ label >> 14
    } else {
        // Symmetric in the two numbers, then mixed so that neighbouring QPs land far apart.
        let product = (local_qpn as u64 + 1).wrapping_mul(remote_qpn as u64 + 1);
        (product.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 50) as u32
    };
    0xC000 | (entropy & 0x3FFF) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_udp_source_port_comes_from_the_flow_label_when_there_is_one() {
        assert_eq!(udp_source_port(0x12345, 1, 2), udp_source_port(0x12345, 8, 9));
        assert_ne!(udp_source_port(0x12345, 1, 2), udp_source_port(0x12346, 1, 2));
    }

    #[test]
    fn the_udp_source_port_is_between_c000_and_ffff_and_the_same_in_both_directions() {
        for n in 0..5_000u32 {
            let (a, b) = (
                n.wrapping_mul(7919) & 0xFF_FFFF,
                n.wrapping_mul(104_729) & 0xFF_FFFF,
            );
            assert!(udp_source_port(0, a, b) >= 0xC000);
            assert!(udp_source_port(a, b, a) >= 0xC000);
            assert_eq!(udp_source_port(0, a, b), udp_source_port(0, b, a));
        }
    }

    #[test]
    fn the_udp_source_ports_of_neighbouring_qps_differ() {
        let mut seen = [false; 0x4000];
        let mut distinct = 0;
        for qpn in 0..256 {
            let slot = &mut seen[(udp_source_port(0, 0x100 + qpn, 0x200 + qpn) & 0x3FFF) as usize];
            distinct += usize::from(!*slot);
            *slot = true;
        }
        assert!(distinct > 240, "only {distinct} ports for 256 QPs");
    }
}
