//! Packets that are a whole message: what is written and read the short way is what the long way writes and reads.
mod common;

use common::samples;
use proptest::prelude::*;
use rnic_wire::*;

prop_compose! {
    fn whole()(
        dest_qpn in 0..1u32 << 24,
        psn in any::<u32>(),
        (ack_req, solicited, write) in any::<(bool, bool, bool)>(),
        (va, rkey, dma_len) in any::<(u64, u32, u32)>(),
    ) -> Whole {
        let reth = write.then_some(Reth { va, rkey, dma_len });
        Whole { dest_qpn, psn: Psn::new(psn), ack_req, solicited, reth }
    }
}

fn template() -> impl Strategy<Value = FrameTemplate> {
    let tags = [VlanTags::NONE, samples::one_tag(), samples::two_tags()];
    let net = [samples::v4(), samples::v6()];
    (
        prop::sample::select(tags.to_vec()),
        prop::sample::select(net.to_vec()),
        any::<u16>(),
    )
        .prop_map(|(tags, net, port)| FrameTemplate::new(samples::link(tags), net, port))
}

proptest! {
    #[test]
    fn headers_written_the_short_way_are_those_of_the_long_way(
        whole in whole(),
        template in template(),
        ident in any::<u16>(),
        len in 0usize..9000,
    ) {
        let (mut short, mut long) = ([0xEE; 256], [0xEE; 256]);
        let n = template.emit_whole(&whole, ident, len, &mut short).unwrap();
        let headers = whole.headers();
        prop_assert_eq!(Ok(n), template.emit_headers(&headers, ident, len, &mut long));
        prop_assert_eq!(&short[..n], &long[..n]);
        prop_assert_eq!(Whole::of(&headers), Some(whole));
        let middle = Headers::new(Bth { opcode: Opcode::new(Transport::Rc, Operation::WriteMiddle), ..headers.bth });
        let n = template.emit_middle(&middle.bth, ident, len, &mut short).unwrap();
        prop_assert_eq!(Ok(n), template.emit_headers(&middle, ident, len, &mut long));
        prop_assert_eq!(&short[..n], &long[..n]);
    }

    #[test]
    fn headers_that_do_not_fit_are_not_written(whole in whole(), template in template(), room in 0usize..MAX_FRAME_HEADER_LEN) {
        let mut out = [0; MAX_FRAME_HEADER_LEN];
        prop_assert!(template.emit_whole(&whole, 0, 65_536, &mut out).is_none(), "too long for IP");
        let n = template.emit_whole(&whole, 0, 0, &mut [0; 256]).unwrap();
        prop_assert!(room >= n || template.emit_whole(&whole, 0, 0, &mut out[..room]).is_none());
    }

    #[test]
    fn plain_packets_are_written_as_the_long_way_writes_them(
        (va, rkey, dma_len, original, compare) in any::<(u64, u32, u32, u64, u64)>(),
        (psn, msn, syndrome, which) in (any::<u32>(), 0..1u32 << 24, any::<u8>(), 0usize..5),
        template in template(),
        ident in any::<u16>(),
        len in 0usize..4096,
    ) {
        use Operation as O;
        let aeth = Aeth { syndrome: Syndrome::from_u8(syndrome), msn };
        let eth = AtomicEth { va, rkey, swap_or_add: original, compare };
        let (operation, extension) = [
            (O::ReadRequest, Extension::Reth(Reth { va, rkey, dma_len })),
            (O::FetchAdd, Extension::Atomic(eth)),
            (O::ReadResponseOnly, Extension::Aeth(aeth)),
            (O::AtomicAcknowledge, Extension::AtomicAck(aeth, AtomicAckEth { original })),
            (O::Acknowledge, Extension::Aeth(aeth)),
        ][which];
        let opcode = Opcode::new(Transport::Rc, operation);
        let plain = Plain { bth: Bth::new(opcode, 17, Psn::new(psn)), extension };
        let len = if opcode.has_payload() { len } else { 0 };
        let (mut short, mut long) = ([0xEE; 256], [0xEE; 256]);
        let n = template.emit_plain(&plain, ident, len, &mut short).unwrap();
        prop_assert_eq!(Ok(n), template.emit_headers(&plain.headers(), ident, len, &mut long));
        prop_assert_eq!(&short[..n], &long[..n]);
    }
}
