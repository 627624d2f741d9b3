//! The opcode table, the headers each opcode carries, and which may follow which.

mod common;

use common::samples;
use rnic_wire::*;

fn op(transport: Transport, operation: Operation) -> Opcode {
    Opcode::new(transport, operation)
}

#[test]
fn the_defined_opcodes_are_those_of_rc_uc_ud_xrc_the_cnp_and_the_selective_ack() {
    let connected =
        |base: u8| (base..=base + 0x14).chain([base + 0x16, base + 0x17, base + 0x1C, base + 0x1D]);
    let expected: Vec<u8> = connected(0x00)
        .chain(0x20..=0x2B)
        .chain([0x64, 0x65, 0x81])
        .chain(connected(0xA0))
        .chain([0xD1])
        .collect();
    let defined: Vec<u8> = (0..=255).filter(|raw| Opcode::from_u8(*raw).is_some()).collect();
    assert_eq!(defined, expected);
}

#[test]
fn every_defined_opcode_survives_decoding_and_encoding() {
    for raw in 0..=255 {
        if let Some(opcode) = Opcode::from_u8(raw) {
            assert_eq!(opcode.to_u8(), raw);
            assert!(opcode.is_defined());
            assert_eq!(Transport::of_opcode(raw), Some(opcode.transport));
        }
    }
    assert_eq!(Opcode::all().count(), 2 * 25 + 12 + 2 + 1 + 1);
}

#[test]
fn the_class_of_a_reserved_opcode_is_known_for_every_class_but_the_second_manufacturers() {
    assert_eq!(Transport::of_opcode(0x15), Some(Transport::Rc));
    assert_eq!(Transport::of_opcode(0x3F), Some(Transport::Uc));
    assert_eq!(Transport::of_opcode(0x55), Some(Transport::Rd));
    assert_eq!(Transport::of_opcode(0x60), Some(Transport::Ud));
    assert_eq!(Transport::of_opcode(0x80), Some(Transport::Cnp));
    assert_eq!(Transport::of_opcode(0xB5), Some(Transport::Xrc));
    assert_eq!(Transport::of_opcode(0xC0), Some(Transport::Rnic));
    assert_eq!(Transport::of_opcode(0xE0), None);
    assert_eq!(Transport::of_opcode(0xFF), None);
}

#[test]
fn header_lengths_are_those_of_the_specification() {
    use Operation::*;
    let rc = [
        (SendFirst, 12),
        (SendMiddle, 12),
        (SendLast, 12),
        (SendLastImm, 16),
        (SendOnly, 12),
        (SendOnlyImm, 16),
        (WriteFirst, 28),
        (WriteMiddle, 12),
        (WriteLast, 12),
        (WriteLastImm, 16),
        (WriteOnly, 28),
        (WriteOnlyImm, 32),
        (ReadRequest, 28),
        (ReadResponseFirst, 16),
        (ReadResponseMiddle, 12),
        (ReadResponseLast, 16),
        (ReadResponseOnly, 16),
        (Acknowledge, 16),
        (AtomicAcknowledge, 24),
        (CompareSwap, 40),
        (FetchAdd, 40),
        (SendLastInv, 16),
        (SendOnlyInv, 16),
        (Flush, 32),
        (AtomicWrite, 28),
    ];
    for (operation, len) in rc {
        assert_eq!(op(Transport::Rc, operation).header_len(), len, "{operation:?}");
        let xrc = op(Transport::Xrc, operation);
        assert_eq!(
            xrc.header_len(),
            len + if xrc.is_request() { 4 } else { 0 },
            "XRC {operation:?}"
        );
    }
    assert_eq!(op(Transport::Ud, SendOnly).header_len(), 20);
    assert_eq!(op(Transport::Ud, SendOnlyImm).header_len(), 24);
    assert_eq!(op(Transport::Uc, WriteOnlyImm).header_len(), 32);
    assert_eq!(Opcode::CNP.header_len(), 28);
    assert_eq!(Opcode::all().map(|o| o.header_len()).max(), Some(MAX_HEADER_LEN));
}

#[test]
fn every_opcode_is_a_request_a_response_or_a_cnp_and_stands_in_one_place_of_its_message() {
    for opcode in Opcode::all() {
        let cnp = opcode == Opcode::CNP;
        assert_eq!(
            opcode.is_request() as u8 + opcode.is_response() as u8 + cnp as u8,
            1,
            "{opcode}"
        );
        let places = [
            opcode.is_first(),
            opcode.is_middle(),
            opcode.is_last(),
            opcode.is_only(),
        ];
        let named = places.iter().filter(|p| **p).count();
        assert_eq!(
            named,
            (opcode.is_send() || opcode.is_write() || opcode.is_read_response()) as usize,
            "{opcode}"
        );
        assert_eq!(
            opcode.starts_message(),
            !opcode.is_middle() && !opcode.is_last(),
            "{opcode}"
        );
        assert_eq!(
            opcode.ends_message(),
            !opcode.is_middle() && !opcode.is_first(),
            "{opcode}"
        );
    }
}

#[test]
fn headers_of_every_opcode_are_emitted_and_parsed_again() {
    for opcode in Opcode::all() {
        let headers = samples::headers(opcode);
        let mut out = [0xEE; MAX_HEADER_LEN];
        let len = headers.emit(&mut out).unwrap();
        assert_eq!(len, headers.len());
        assert_eq!(Headers::parse(&out[..len]), Ok((headers, len)), "{opcode}");
        assert!(
            out[len..].iter().all(|b| *b == 0xEE),
            "{opcode} wrote beyond its headers"
        );
    }
}

#[test]
fn headers_cut_anywhere_are_reported_as_truncated() {
    for opcode in Opcode::all() {
        let headers = samples::headers(opcode);
        let mut out = [0; MAX_HEADER_LEN];
        let len = headers.emit(&mut out).unwrap();
        for cut in 0..len {
            let need = if cut < 12 { 12 } else { len as u16 };
            let error = ParseError::HeaderTruncated {
                need,
                have: cut as u16,
            };
            assert_eq!(Headers::parse(&out[..cut]), Err(error), "{opcode} cut to {cut}");
            assert!(matches!(
                headers.emit(&mut [0; 64][..cut]),
                Err(EmitError::BufferTooSmall { .. })
            ));
        }
    }
}

#[test]
fn xrc_flush_and_atomic_write_headers_have_the_bytes_of_the_specification() {
    let emit = |headers: Headers| {
        let mut out = [0; MAX_HEADER_LEN];
        let len = headers.emit(&mut out).unwrap();
        out[12..len].to_vec()
    };
    let reth = Some(Reth {
        va: 0x0102_0304_0506_0708,
        rkey: 0x1112_1314,
        dma_len: 0x2122_2324,
    });
    let reth_bytes = [
        1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x24,
    ];
    let feth = Some(Feth {
        placement: Feth::PERSISTENCE,
        selectivity: Feth::REGION,
    });
    let xrceth = Some(XrcEth { srqn: 0x31_3233 });
    let bth = |transport, operation| Headers::new(Bth::new(op(transport, operation), 1, Psn::ZERO));

    let flush = Headers {
        feth,
        reth,
        ..bth(Transport::Rc, Operation::Flush)
    };
    assert_eq!(emit(flush), [&[0, 0, 0, 0x12][..], &reth_bytes].concat());
    let flush = Headers {
        xrceth,
        feth,
        reth,
        ..bth(Transport::Xrc, Operation::Flush)
    };
    assert_eq!(
        emit(flush),
        [&[0, 0x31, 0x32, 0x33, 0, 0, 0, 0x12][..], &reth_bytes].concat()
    );
    let atomic_write = Headers {
        reth,
        ..bth(Transport::Rc, Operation::AtomicWrite)
    };
    assert_eq!(emit(atomic_write), reth_bytes);
    let write = Headers {
        xrceth,
        reth,
        imm: Some(0x4142_4344),
        ..bth(Transport::Xrc, Operation::WriteOnlyImm)
    };
    assert_eq!(
        emit(write),
        [&[0, 0x31, 0x32, 0x33][..], &reth_bytes, &[0x41, 0x42, 0x43, 0x44]].concat()
    );
}

#[test]
fn migreq_is_emitted_as_1_and_accepted_as_0() {
    let mut out = [0; MAX_HEADER_LEN];
    let ack = samples::headers(op(Transport::Rc, Operation::Acknowledge));
    let len = ack.emit(&mut out).unwrap();
    assert_eq!(out[1] & 0x40, 0x40);
    out[1] &= !0x40;
    let (parsed, _) = Headers::parse(&out[..len]).unwrap();
    assert!(!parsed.bth.mig_req);
}

#[test]
fn fields_wider_than_the_wire_cannot_spill_into_their_neighbours() {
    let mut headers = Headers::new(Bth::new(
        op(Transport::Ud, Operation::SendOnly),
        u32::MAX,
        Psn::MAX,
    ));
    headers.bth.pad = 0xFF;
    headers.deth = Some(Deth {
        qkey: 0,
        src_qpn: u32::MAX,
    });
    let mut out = [0; MAX_HEADER_LEN];
    headers.emit(&mut out).unwrap();
    assert_eq!(out[1], 0x70, "pad must not reach MigReq or the version");
    assert_eq!((out[4], out[8], out[16]), (0, 0, 0));
}

#[test]
fn reserved_bits_of_received_headers_are_ignored() {
    let headers = samples::headers(op(Transport::Ud, Operation::SendOnly));
    let mut out = [0; MAX_HEADER_LEN];
    let len = headers.emit(&mut out).unwrap();
    out[4] |= 0x3F;
    out[8] |= 0x7F;
    out[16] = 0xFF;
    assert_eq!(Headers::parse(&out[..len]), Ok((headers, len)));
}

#[test]
fn emitting_refuses_undefined_opcodes_and_headers_that_do_not_belong_to_the_opcode() {
    let mut out = [0; MAX_HEADER_LEN];
    for (transport, operation) in [
        (Transport::Ud, Operation::ReadRequest),
        (Transport::Uc, Operation::SendOnlyInv),
        (Transport::Rd, Operation::SendOnly),
        (Transport::Rc, Operation::Resync),
        (Transport::Rc, Operation::CongestionNotification),
        (Transport::Cnp, Operation::SendMiddle),
    ] {
        let headers = Headers::new(Bth::new(op(transport, operation), 1, Psn::ZERO));
        assert!(!headers.bth.opcode.is_defined());
        assert!(
            matches!(headers.emit(&mut out), Err(EmitError::UndefinedOpcode { .. })),
            "{operation:?}"
        );
    }
    for opcode in Opcode::all() {
        let mut headers = samples::headers(opcode);
        headers.imm = if headers.imm.is_some() { None } else { Some(1) };
        assert!(
            matches!(headers.emit(&mut out), Err(EmitError::WrongHeaders { .. })),
            "{opcode}"
        );
    }
}

/// The rule of the specification in its own words, apart from the code's: what each FIRST or MIDDLE may lead to.
fn legal(previous: Option<Opcode>, next: Opcode) -> bool {
    use Operation::*;
    let starts = !matches!(
        next.operation,
        SendMiddle
            | SendLast
            | SendLastImm
            | SendLastInv
            | WriteMiddle
            | WriteLast
            | WriteLastImm
            | ReadResponseMiddle
            | ReadResponseLast
    );
    let Some(previous) = previous else {
        return starts;
    };
    let fits = match previous.operation {
        SendFirst | SendMiddle => matches!(next.operation, SendMiddle | SendLast | SendLastImm | SendLastInv),
        WriteFirst | WriteMiddle => matches!(next.operation, WriteMiddle | WriteLast | WriteLastImm),
        ReadResponseFirst | ReadResponseMiddle => {
            matches!(next.operation, ReadResponseMiddle | ReadResponseLast)
        }
        _ => starts,
    };
    fits && previous.transport == next.transport
}

#[test]
fn after_a_first_only_middle_or_last_of_the_same_kind_and_class_may_follow() {
    for next in Opcode::all() {
        assert_eq!(
            follows(None, next).is_ok(),
            legal(None, next),
            "nothing, then {next}"
        );
        for previous in Opcode::all() {
            let allowed = follows(Some(previous), next).is_ok();
            assert_eq!(allowed, legal(Some(previous), next), "{previous}, then {next}");
        }
    }
}

#[test]
fn a_sequence_error_says_what_was_wrong() {
    use Operation::*;
    let rc = |operation| op(Transport::Rc, operation);
    let next = rc(SendLast);
    assert_eq!(
        follows(None, next),
        Err(SequenceError::NothingToContinue { next })
    );
    let open = MessageKind::Write;
    assert_eq!(
        follows(Some(rc(WriteFirst)), next),
        Err(SequenceError::MessageUnfinished { open, next })
    );
    let previous = Transport::Uc;
    let error = SequenceError::TransportChanged { previous, next };
    assert_eq!(follows(Some(op(Transport::Uc, SendFirst)), next), Err(error));
    assert_eq!(error.to_string(), "RC SEND_LAST follows a packet of class UC");
}

#[test]
fn a_message_sequence_follows_messages_and_stays_put_on_an_illegal_packet() {
    use Operation::*;
    let rc = |operation| op(Transport::Rc, operation);
    let mut sequence = MessageSequence::new();
    for operation in [SendFirst, SendMiddle, SendLastInv, ReadRequest, WriteFirst] {
        assert_eq!(sequence.accept(rc(operation)), Ok(()));
    }
    assert_eq!(sequence.open(), MessageKind::Write);
    for operation in [
        SendOnly,
        SendLast,
        WriteOnly,
        WriteFirst,
        ReadRequest,
        FetchAdd,
        Flush,
        AtomicWrite,
    ] {
        assert!(sequence.check(rc(operation)).is_err());
        assert!(sequence.accept(rc(operation)).is_err());
        assert_eq!(sequence.open(), MessageKind::Write);
    }
    assert_eq!(sequence.accept(rc(WriteLastImm)), Ok(()));
    assert_eq!(sequence.open(), MessageKind::None);
    assert!(sequence.accept(rc(WriteLast)).is_err());
    sequence.accept(rc(SendFirst)).unwrap();
    sequence.reset();
    assert_eq!(sequence, MessageSequence::new());
}
