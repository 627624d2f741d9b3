//! UDP as RoCEv2 uses it, and the choice of its source port (A17.3.2).

/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;

/// UDP source port of a connection: in 0xC000 to 0xFFFF, spread so that routers balance flows, constant for the QP.
///
/// It is taken from the 20-bit `flow_label` of the address vector when that is not zero, else from that of the two QP
/// numbers ([`flow_label_of`]), as the kernel and rdma-core choose it. It is then the same whichever of the two is local, so
/// that both directions of a connection take the same path.
pub const fn udp_source_port(flow_label: u32, local_qpn: u32, remote_qpn: u32) -> u16 {
    let label = match flow_label & FLOW_LABEL {
        0 => flow_label_of(local_qpn, remote_qpn),
        label => label,
    };
    // The six bits that a port has no room for are folded into the lowest ones.
    0xC000 | ((label ^ label >> 14) & 0x3FFF) as u16
}

/// The flow label, 20 bits, of a connection that was given none: the same for both directions.
pub const fn flow_label_of(local_qpn: u32, remote_qpn: u32) -> u32 {
    let product = local_qpn as u64 * remote_qpn as u64;
    let folded = product ^ product >> 20;
    ((folded ^ folded >> 40) & FLOW_LABEL as u64) as u32
}

const FLOW_LABEL: u32 = 0x000F_FFFF;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_udp_source_port_comes_from_the_flow_label_when_there_is_one() {
        assert_eq!(udp_source_port(0x12345, 1, 2), udp_source_port(0x12345, 8, 9));
        assert_ne!(udp_source_port(0x12345, 1, 2), udp_source_port(0x12346, 1, 2));
    }

    #[test]
    fn the_udp_source_port_is_the_one_that_the_kernel_and_rdma_core_choose() {
        for (label, port) in [
            (0x12345, 0xE341),
            (1, 0xC001),
            (0x3FFF, 0xFFFF),
            (0xF_FFFF, 0xFFC0),
        ] {
            assert_eq!(udp_source_port(label, 0, 0), port);
        }
        assert_eq!(flow_label_of(0x11, 0x22), 0x242);
        assert_eq!(udp_source_port(0, 0x11, 0x22), 0xC242);
        assert_eq!(udp_source_port(0, 0x12_3456, 0x65_4321), 0xF787);
        assert_eq!(udp_source_port(0, 0, 0), 0xC000);
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
