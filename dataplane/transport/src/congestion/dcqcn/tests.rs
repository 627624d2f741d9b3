//! Each rule of the reaction point by itself.

use super::*;

const US: u64 = 1_000;
/// 40 Gb/s.
const LINE: u64 = 5_000_000_000;

fn flow() -> Dcqcn {
    Dcqcn::new(DcqcnSettings::for_line_rate(LINE))
}

/// A flow that was told of congestion at 0.
fn limited() -> Dcqcn {
    let mut flow = flow();
    assert!(flow.congested(Signal::Cnp, Time(0)));
    flow
}

#[test]
fn the_settings_are_those_of_the_paper_at_40_gbps() {
    let settings = DcqcnSettings::for_line_rate(LINE);
    let mbps = |rate: u64| rate * 8 / 1_000_000;
    assert_eq!(
        (mbps(settings.additive_increase), mbps(settings.hyper_increase)),
        (40, 400)
    );
    assert_eq!(
        (
            settings.byte_counter,
            settings.gain_log2,
            settings.fast_recoveries
        ),
        (10_000_000, 8, 5)
    );
    let times = (
        settings.increase_timer,
        settings.alpha_timer,
        settings.cnp_interval,
    );
    assert_eq!(times, (55_000, 55_000, 50_000));
    assert_eq!(settings.check(), Ok(()));
    for rate in [0, 1, 1_000_000, 1 << 39] {
        assert_eq!(DcqcnSettings::for_line_rate(rate).check(), Ok(()), "{rate}");
    }
}

#[test]
fn a_flow_is_limited_by_its_first_cnp_and_not_before() {
    let mut flow = flow();
    flow.sent(1_000, 0, Time(5));
    assert_eq!(flow.rate(), None);
    assert!(flow.congested(Signal::Cnp, Time(10)));
    assert_eq!(flow.rate(), Some(LINE / 2), "alpha begins at 1");
    assert_eq!(flow.target, LINE);
}

#[test]
fn the_rate_goes_down_at_most_once_in_an_interval() {
    let mut flow = limited();
    assert!(!flow.congested(Signal::Cnp, Time(50 * US - 1)));
    assert!(!flow.congested(Signal::Timeout, Time(50 * US - 1)));
    assert_eq!(flow.rate(), Some(LINE / 2));
    assert!(flow.congested(Signal::Cnp, Time(50 * US)));
    assert_eq!(
        flow.rate(),
        Some(LINE / 4),
        "alpha is 1 still: no period without a CNP has passed"
    );
}

#[test]
fn alpha_rises_with_a_cnp_and_fades_without() {
    let mut flow = limited();
    flow.alpha = ALPHA_ONE / 2;
    flow.fade(Time(54 * US));
    assert_eq!(flow.alpha, ALPHA_ONE / 2, "not a whole period");
    flow.fade(Time(55 * US));
    assert_eq!(flow.alpha, ALPHA_ONE / 2 / 256 * 255);
    assert_eq!(flow.alpha_at, Time(55 * US));
    // Many periods at once are as many as one by one.
    let mut slowly = flow;
    for period in 2..=1_000 {
        slowly.fade(Time(period * 55 * US));
    }
    flow.fade(Time(1_000 * 55 * US));
    assert!(
        flow.alpha.abs_diff(slowly.alpha) <= 256,
        "{} {}",
        flow.alpha,
        slowly.alpha
    );
    // (1 - g) alpha + g.
    flow.alpha = ALPHA_ONE / 4;
    (flow.alpha_at, flow.timer_deadline) = (Time(60_000 * US), Time(60_010 * US));
    flow.congested(Signal::Cnp, Time(60_000 * US));
    assert_eq!(flow.alpha, ALPHA_ONE / 4 / 256 * 255 + ALPHA_ONE / 256);
}

#[test]
fn a_cut_is_half_of_alpha_and_a_timeout_is_half() {
    let alike = |signal| {
        let mut flow = limited();
        flow.alpha = ALPHA_ONE / 4;
        (flow.alpha_at, flow.timer_deadline) = (Time(50 * US), Time(51 * US));
        flow.congested(signal, Time(50 * US));
        (flow.rate, flow.target)
    };
    let half = LINE / 2;
    assert_eq!(alike(Signal::Cnp), (half - half / 8, half));
    assert_eq!(alike(Signal::SequenceError), (half - half / 8, half));
    assert_eq!(alike(Signal::Timeout), (half / 2, half));
}

#[test]
fn no_cut_goes_below_the_least_rate() {
    let mut flow = limited();
    for count in 1..100 {
        flow.congested(Signal::Timeout, Time(count * 50 * US));
    }
    assert_eq!(flow.rate(), Some(LINE / 1_000));
}

#[test]
fn fast_recovery_goes_half_of_the_way_back_four_times() {
    let mut flow = limited();
    let mut wanted = LINE / 2;
    for turn in 1..5 {
        flow.sent(1, 0, Time(turn * 55 * US - 1));
        assert_eq!(flow.rate(), Some(wanted), "before the timer");
        flow.sent(1, 0, Time(turn * 55 * US));
        wanted = (wanted + LINE).div_ceil(2);
        assert_eq!((flow.rate(), flow.target), (Some(wanted), LINE), "turn {turn}");
    }
}

#[test]
fn additive_increase_moves_the_target_by_a_step() {
    let mut flow = limited();
    flow.target = LINE / 2;
    flow.rate = LINE / 4;
    flow.timer_turns = 4;
    flow.sent(1, 0, Time(55 * US));
    assert_eq!(flow.target, LINE / 2 + LINE / 1_000);
    assert_eq!(flow.rate(), Some((LINE / 4 + flow.target).div_ceil(2)));
}

#[test]
fn hyper_increase_needs_both_the_timer_and_the_byte_counter() {
    let mut flow = limited();
    (flow.target, flow.rate) = (LINE / 4, LINE / 4);
    (flow.timer_turns, flow.byte_turns) = (7, 5);
    flow.sent(1, 0, Time(55 * US));
    assert_eq!(
        flow.target,
        LINE / 4 + LINE / 1_000,
        "5 turns of the counter are not beyond fast recovery"
    );
    flow.bytes = 10_000_000 - 1;
    flow.byte_turns = 6;
    flow.sent(1, 0, Time(56 * US));
    assert_eq!(flow.byte_turns, 7);
    assert_eq!(
        flow.target,
        LINE / 4 + LINE / 1_000 + 2 * (LINE / 100),
        "the second step is twice the first"
    );
}

#[test]
fn the_byte_counter_turns_by_itself() {
    let mut flow = limited();
    flow.sent(9_999_999, 0, Time(1));
    assert_eq!(flow.rate(), Some(LINE / 2));
    flow.sent(1, 0, Time(2));
    assert_eq!(flow.rate(), Some(LINE / 4 * 3));
    assert_eq!((flow.byte_turns, flow.timer_turns, flow.bytes), (1, 0, 0));
}

#[test]
fn a_cut_begins_fast_recovery_anew() {
    let mut flow = limited();
    (flow.timer_turns, flow.byte_turns, flow.bytes) = (9, 9, 77);
    flow.congested(Signal::Cnp, Time(50 * US));
    assert_eq!((flow.timer_turns, flow.byte_turns, flow.bytes), (0, 0, 0));
    assert_eq!(flow.timer_deadline, Time(105 * US));
}

#[test]
fn near_the_line_rate_a_flow_is_not_limited_any_more() {
    let mut flow = limited();
    let mut turns = 0;
    while flow.rate().is_some() {
        turns += 1;
        flow.sent(1, 0, Time(turns * 55 * US));
    }
    assert_eq!(turns, 5, "1/2, 3/4, 7/8, 15/16, 31/32, 63/64");
    // And what comes then is a first CNP again.
    assert!(flow.congested(Signal::Cnp, Time(10_000 * US)));
    assert_eq!(flow.rate(), Some(LINE / 2));
}

#[test]
fn a_flow_that_is_called_late_catches_up_in_bounded_steps() {
    let mut flow = limited();
    (flow.rate, flow.target) = (LINE / 1_000, LINE / 1_000);
    flow.sent(1, 0, Time(u64::MAX / 2));
    assert_eq!(flow.timer_turns, INCREASES_PER_CALL);
    let calls = (1..).find(|_| {
        flow.sent(1, 0, Time(u64::MAX / 2));
        flow.rate().is_none()
    });
    assert!(calls.is_some_and(|calls| calls < 40), "{calls:?}");
}

#[test]
fn a_silent_flow_keeps_its_rate() {
    let mut flow = limited();
    flow.sent(1, 1_000_000 * US, Time(1_000_054 * US));
    assert_eq!(flow.rate(), Some(LINE / 2));
    flow.sent(1, 0, Time(1_000_055 * US));
    assert_eq!(flow.rate(), Some(LINE / 4 * 3));
}

#[test]
fn settings_out_of_range_are_named() {
    let good = DcqcnSettings::for_line_rate(LINE);
    let bad = [
        (
            DcqcnSettings {
                min_rate: LINE + 1,
                ..good
            },
            "min_rate",
        ),
        (DcqcnSettings { gain_log2: 0, ..good }, "gain_log2"),
        (
            DcqcnSettings {
                increase_timer: 0,
                ..good
            },
            "increase_timer",
        ),
        (
            DcqcnSettings {
                fast_recoveries: 0,
                ..good
            },
            "fast_recoveries",
        ),
    ];
    for (settings, field) in bad {
        assert_eq!(settings.check().map_err(|error| error.field), Err(field));
    }
}
