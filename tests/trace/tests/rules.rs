//! Every rule is applied to a good trace without a word, and reports the trace that is wrong in exactly its way.

mod common;

use common::{ADDRESS, Trace, good, good_selective, good_uc, good_ud, mark, operate, set_ecn, xrc};
use rnic_trace::{Near, Options, Rule};
use rnic_wire::{Ecn, Opcode, Operation, Psn, Transport};

/// The trace is fine before `wrong` and violates the rule at this frame first afterwards.
fn caught(rule: Rule, frame: usize, trace: Trace, wrong: impl Fn(&mut Trace)) {
    let options = Options {
        near: Near::Everybody,
        cnp_within: (rule == Rule::CnpMissing).then_some(50_000),
        ..Options::default()
    };
    let report = trace.check_with(&options);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    let mut edited = trace;
    wrong(&mut edited);
    let report = edited.check_with(&options);
    let first = report.violations.first().expect("a violation");
    assert_eq!(
        (first.rule, first.frame),
        (rule, frame),
        "{:#?}",
        report.violations
    );
    let line = first.to_string();
    assert!(
        line.contains(rule.section()) && line.contains(rule.name()),
        "{line}"
    );
}

macro_rules! rules {
    ($($name:ident: $rule:ident, frame $frame:literal of $trace:expr, $wrong:expr;)*) => {
        $(
            #[test]
            fn $name() {
                caught(Rule::$rule, $frame, $trace, $wrong);
            }
        )*

        #[test]
        fn every_rule_has_a_wrong_trace() {
            let tested = [$(Rule::$rule),*];
            for rule in Rule::ALL {
                assert!(tested.contains(&rule), "{rule}");
            }
        }
    };
}

rules! {
    a_pad_longer_than_the_payload_is_malformed: Malformed, frame 4 of good(), |t| {
        t.records[3].bytes[14 + 20 + 8 + 1] |= 0x30;
    };
    a_reserved_opcode: ReservedOpcode, frame 1 of good(), |t| t.records[0].bytes[14 + 20 + 8] = 0x18;
    a_wrong_icrc: Icrc, frame 2 of good(), |t| t.records[1].bytes[100] ^= 1;
    ack_req_on_uc: AckReq, frame 2 of good_uc(), |t| t.edit(2, |repr, _| repr.headers.bth.ack_req = true);
    mig_req_of_zero: MigReq, frame 4 of good(), |t| t.edit(4, |repr, _| repr.headers.bth.mig_req = false);
    a_source_port_that_changes: SourcePort, frame 3 of good(), |t| t.edit(3, |repr, _| repr.udp_src_port = 0xC124);
    a_psn_that_is_skipped: RequestGap, frame 7 of good(), |t| {
        t.remove(5);
        t.remove(6);
    };
    a_retransmission_that_begins_too_late: GoBackN, frame 12 of good(), |t| t.remove(11);
    a_retransmission_of_something_else: Retransmission, frame 11 of good(), |t| t.edit(11, |_, len| *len = 8);
    a_write_inside_a_send: OpcodeSequence, frame 2 of good(), |t| {
        t.edit(2, |repr, _| operate(&mut repr.headers, Operation::WriteMiddle));
    };
    a_message_that_changes_its_xrc_srq: XrcSrq, frame 2 of xrc(good()), |t| {
        t.edit(2, |repr, _| repr.headers.xrceth.as_mut().expect("an XRCETH").srqn = 0x99);
    };
    a_retransmission_for_another_xrc_srq: Retransmission, frame 11 of xrc(good()), |t| {
        t.edit(11, |repr, _| repr.headers.xrceth.as_mut().expect("an XRCETH").srqn = 0x99);
    };
    a_middle_that_is_not_full: Length, frame 2 of good(), |t| t.edit(2, |_, len| *len = 200);
    a_write_that_carries_less_than_announced: Length, frame 5 of good(), |t| {
        t.edit(5, |repr, _| repr.headers.reth.as_mut().expect("a RETH").dma_len = 9);
    };
    a_read_resumed_at_the_wrong_address: ReadResume, frame 24 of good(), |t| {
        t.edit(24, |repr, _| repr.headers.reth.as_mut().expect("a RETH").va = ADDRESS);
    };
    a_request_sent_before_the_rnr_timer_ends: RnrWait, frame 16 of good(), |t| t.records[15].nanos -= 9_000_000;
    a_uc_psn_that_is_skipped: UcPsn, frame 4 of good_uc(), |t| t.remove(3);
    a_ud_psn_used_twice: UdPsn, frame 3 of good_ud(), |t| {
        t.edit(3, |repr, _| repr.headers.bth.psn = Psn::new(6));
    };
    an_ack_of_what_was_never_sent: AckUnseen, frame 4 of good(), |t| psn(t, 4, 103);
    a_nak_though_nothing_is_missing: NakWithoutGap, frame 10 of good(), |t| psn(t, 10, 106);
    an_ack_that_goes_back: AckMonotony, frame 13 of good(), |t| psn(t, 13, 103);
    a_second_nak_while_one_is_outstanding: SingleNak, frame 11 of good(), |t| {
        t.records[10].bytes = t.records[9].bytes.clone();
    };
    an_ack_before_the_read_in_front_of_it_is_answered: AckBeforeRead, frame 23 of good(), |t| t.move_before(23, 21);
    an_msn_that_counts_too_much: Msn, frame 13 of good(), |t| msn(t, 13, 6);
    an_msn_that_goes_back: Msn, frame 26 of good(), |t| msn(t, 26, 3);
    a_response_after_a_refusal: AfterError, frame 38 of good(), |t| t.repeat(35);
    an_atomic_ack_of_a_send: ResponseKind, frame 32 of good(), |t| psn(t, 32, 111);
    a_last_response_in_the_middle: ReadResponsePsn, frame 21 of good(), |t| {
        t.edit(21, |repr, _| {
            operate(&mut repr.headers, Operation::ReadResponseLast);
            repr.headers.aeth = Some(rnic_wire::Aeth { syndrome: rnic_wire::Syndrome::ACK, msn: 7 });
        });
    };
    a_retry_of_a_read_that_does_not_start_at_first: ReadResponseSequence, frame 26 of good(), |t| {
        t.edit(26, |repr, _| {
            operate(&mut repr.headers, Operation::ReadResponseMiddle);
            repr.headers.aeth = None;
        });
    };
    a_response_that_is_left_out: ReadResponseSequence, frame 22 of good(), |t| t.remove(21);
    a_last_response_that_is_too_short: ReadResponseLength, frame 22 of good(), |t| t.edit(22, |_, len| *len = 84);
    an_atomic_executed_twice: AtomicReplay, frame 32 of good(), |t| {
        t.edit(32, |repr, _| repr.headers.atomic_ack.as_mut().expect("a value").original = 6);
    };
    a_cnp_without_a_mark: CnpCause, frame 34 of good(), |t| t.edit(33, |repr, _| set_ecn(repr, Ecn::Ect0));
    a_cnp_too_soon: CnpPacing, frame 35 of good(), |t| {
        t.edit(31, |repr, _| mark(repr));
        t.records[34].bytes = t.records[33].bytes.clone();
        t.records[34].nanos = t.records[33].nanos + 1_000;
    };
    a_mark_without_a_cnp: CnpMissing, frame 33 of good(), |t| {
        t.remove(34);
        t.records.last_mut().expect("a frame").nanos += 1_000_000;
    };
}

fn psn(trace: &mut Trace, number: usize, psn: u32) {
    trace.edit(number, |repr, _| repr.headers.bth.psn = Psn::new(psn));
}

fn msn(trace: &mut Trace, number: usize, msn: u32) {
    trace.edit(number, |repr, _| {
        repr.headers.aeth.as_mut().expect("an AETH").msn = msn
    });
}

#[test]
fn every_rule_on_rc_is_applied_to_the_good_trace() {
    let report = good().check(Near::Everybody);
    assert_eq!((report.roce, report.connections), (37, 1));
    for rule in Rule::ALL {
        let elsewhere = matches!(
            rule,
            Rule::UcPsn | Rule::UdPsn | Rule::CnpPacing | Rule::CnpMissing | Rule::AfterError
        );
        assert!(elsewhere || report.applied(rule) > 0, "{rule}");
    }
    assert!(good_uc().check(Near::Everybody).applied(Rule::UcPsn) > 0);
    assert!(good_ud().check(Near::Everybody).applied(Rule::UdPsn) > 0);
}

#[test]
fn an_ack_repeated_in_front_of_an_answered_atomic_does_not_go_back() {
    let mut trace = good();
    // The SEND before the atomic comes again, and is acknowledged by what has completed since.
    trace.records.truncate(32);
    trace.repeat(25);
    trace.repeat(28);
    msn(&mut trace, 34, 9);
    let report = trace.check(Near::Everybody);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[test]
fn what_a_selective_ack_says_has_arrived_may_be_left_out_and_has_been_sent() {
    let violated = |trace: &Trace| -> Vec<(Rule, usize)> {
        let violations = trace.check(Near::Everybody).violations;
        violations
            .iter()
            .map(|violation| (violation.rule, violation.frame))
            .collect()
    };
    assert_eq!(violated(&good_selective(&[1, 3])), []);
    assert_eq!(violated(&good_selective(&[1, 3, 7])), [(Rule::AckUnseen, 6)]);
    let mut plain = good_selective(&[1, 3]);
    plain.edit(6, |repr, len| {
        repr.headers.bth.opcode = Opcode::new(Transport::Rc, Operation::Acknowledge);
        *len = 0;
    });
    let gaps = [(Rule::GoBackN, 8), (Rule::GoBackN, 9)];
    assert_eq!(
        violated(&plain),
        gaps,
        "who goes back by a NAK goes on without a gap"
    );
}
