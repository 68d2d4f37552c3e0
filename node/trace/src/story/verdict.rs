//! What became of a connection, by its packets.

use super::Verdict;
use super::packet::{Packet, is_by_receiver};
use crate::hop::Hop;

pub(super) fn verdict(packets: &[Packet], request: &Hop) -> Verdict {
    let arrived = |packet: &&Packet| packet.arrival(packets, request).is_some();
    // Nobody acknowledges a refusal.
    let refused = |packet: &&Packet| packet.is_reply && packet.refuses() && packet.dropped().is_none();
    let reply = packets.iter().find(arrived).or(packets.iter().find(refused));
    let Some(reply) = reply else {
        return unanswered(packets);
    };
    if reply.refuses() {
        return Verdict::Refused;
    }
    let is_lost = |(at, packet): &(usize, &Packet)| {
        // A reply to a datagram says nothing of which one it answers.
        let mut arrived = packets
            .iter()
            .enumerate()
            .filter(|(_, other)| other.is_reply != packet.is_reply);
        packet.dropped().is_some_and(|step| !is_by_receiver(step))
            && !arrived.any(|(later, other)| match packet.is_tcp() {
                true => packet.is_acknowledged_by(other),
                false => later > *at,
            })
    };
    match packets.iter().enumerate().find(is_lost) {
        Some((_, packet)) => Verdict::Dropped {
            is_reply: packet.is_reply,
        },
        None => Verdict::Answered,
    }
}

fn unanswered(packets: &[Packet]) -> Verdict {
    // What TCP has already it has no use for a second time: that it comes again is since the reply did not arrive.
    let is_again = |packet: &Packet, step| {
        let mut taken = packets.iter().filter(|other| is_taken(other));
        is_by_receiver(step) && taken.any(|other| packet.repeats(other))
    };
    let dropped = |is_reply| {
        let mut of_kind = packets.iter().filter(|packet| packet.is_reply == is_reply);
        of_kind.any(|packet| packet.dropped().is_some_and(|step| !is_again(packet, step)))
    };
    if dropped(true) {
        Verdict::Dropped { is_reply: true }
    } else if dropped(false) {
        Verdict::Dropped { is_reply: false }
    } else {
        without_reply(packets)
    }
}

/// Whether who it was for has had it.
fn is_taken(packet: &Packet) -> bool {
    packet.is_consumed() && packet.departure().is_none()
}

/// What became of the requests that nobody dropped.
fn without_reply(packets: &[Packet]) -> Verdict {
    let mut requests = packets.iter().filter(|packet| !packet.is_reply);
    let has_reply = packets.iter().any(|packet| packet.is_reply);
    let first_left = requests
        .clone()
        .next()
        .is_some_and(|first| first.departure().is_some());
    if let Some(taken) = requests.find(|packet| is_taken(packet)) {
        // Who has taken the opening of a connection always says something, if it can; and what arrives is acknowledged.
        if taken.asks_for_connection() {
            Verdict::Unanswered
        } else {
            Verdict::Delivered
        }
    } else if first_left && !has_reply {
        Verdict::Left
    } else {
        Verdict::Unanswered
    }
}
