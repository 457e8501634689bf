#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Random lives of rewards against a computation of its own: rules, tiers, caps,
# rounding, refunds, holds, approvals, expiry, payouts, redemptions.  Each
# world is an organisation with a program, two referrers, a few customers and
# some thirty steps; balances and the status of every reward are compared.
#
#     REFERRAL_LEDGER_WORLDS  how many worlds (40)
#     REFERRAL_LEDGER_SEED    the seed of the first one, which a failure names

use strict;
use warnings;

use integer;
use JSON::PP;
use POSIX ();
use Test::More;
use Referral::Test;

my $worlds = $ENV{REFERRAL_LEDGER_WORLDS} // 40;
my $seed = $ENV{REFERRAL_LEDGER_SEED} // time() % 1_000_000_000;

my $t = Referral::Test->new();
my $pg = $t->postgres(migrate => 0);
my $json = JSON::PP->new()->canonical()->allow_nonref();

for my $file (sort glob($t->root() . '/sql/[0-9]*.sql')) {
    my $r = $t->run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
                    $pg->conninfo(), '-f', $file);
    die "$file: $r->{output}" if $r->{status};
}

note("REFERRAL_LEDGER_SEED=$seed REFERRAL_LEDGER_WORLDS=$worlds");
diag("worlds $seed to ", $seed + $worlds - 1);

$pg->rows(<<'SQL');
CREATE FUNCTION try(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result  text;
BEGIN
    EXECUTE 'SELECT (' || command || ')::text' INTO result;
    RETURN coalesce(nullif(result, ''), 'ok');
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || CASE WHEN SQLSTATE LIKE 'RF%' THEN ''
                            ELSE ' ' || SQLERRM END;
END
$$;

CREATE FUNCTION given(answer jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws('; ', answer ->> 'nth',
        (SELECT string_agg(concat_ws(' ', r ->> 'beneficiary', r ->> 'slot',
                                     r ->> 'amount', r ->> 'unit',
                                     r ->> 'status'), ', ' ORDER BY n)
             FROM jsonb_array_elements(answer -> 'rewards')
                      WITH ORDINALITY e (r, n)),
        (SELECT string_agg(concat_ws(' ', r ->> 'beneficiary', r ->> 'slot',
                                     r ->> 'reason'), ', ' ORDER BY n)
             FROM jsonb_array_elements(answer -> 'skipped')
                      WITH ORDINALITY e (r, n)))
$$;

CREATE FUNCTION taken(answer jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(concat_ws(' ', r ->> 'amount', r ->> 'unit'),
                               ', ' ORDER BY n), 'nothing')
        FROM jsonb_array_elements(answer -> 'reversed')
                 WITH ORDINALITY e (r, n)
$$;

CREATE FUNCTION org(name text) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT id FROM referral.organisation WHERE slug = $1
$$;

CREATE FUNCTION referrer(org text, name text) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT id FROM referral.referrer
        WHERE organisation_id = org(org) AND external_id = name
$$;

CREATE FUNCTION reward(org text, order_ref text, beneficiary text, slot text)
    RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT w.id FROM referral.reward w
                     JOIN referral.conversion c ON c.id = w.conversion_id
        WHERE c.organisation_id = org(org) AND c.order_ref = $2
              AND w.beneficiary = $3 AND w.slot = $4
$$;

CREATE FUNCTION payout(org text, key text) RETURNS bigint
    LANGUAGE sql STABLE AS $$
    SELECT id FROM referral.payout
        WHERE organisation_id = org(org) AND idempotency_key = key
$$;
SQL

# the moment from which days are counted; hours keep them apart from it

my $now = $pg->value('SELECT extract(epoch FROM now())::bigint');


# --- the reference computation ---------------------------------------------

# a / b to the nearest whole number, a half to the even one; a, b >= 0

sub half_even {
    my ($a, $b) = @_;

    my $q = $a / $b;
    my $r = 2 * ($a % $b);

    return $q + ($r > $b || ($r == $b && $q % 2) ? 1 : 0);
}


sub day_of {
    my ($w, $at) = @_;

    local $ENV{TZ} = $w->{zone};
    POSIX::tzset();
    my $day = POSIX::strftime('%Y-%m-%d', localtime($at));
    $ENV{TZ} = 'UTC';
    POSIX::tzset();

    return $day;
}


sub rule_value {
    my ($w, $u, $nth, $day, $order, $commission) = @_;

    my ($fixed, $rate) = @$u{'amount', 'rate_bp'};

    for my $tier (@{ $u->{tiers} // [] }) {
        next if $tier->{from} > $nth;
        ($fixed, $rate) = @$tier{'amount', 'rate_bp'};
    }

    $rate = $commission
        if defined $rate && defined $commission
           && $u->{beneficiary} eq 'referrer';

    my $by = 0;
    for my $s (@{ $u->{seasons} // [] }) {
        $by = $s->{multiplier_bp}
            if $day ge $s->{from} && $day le $s->{until}
               && $s->{multiplier_bp} > $by;
    }
    $by ||= 10000;

    return half_even($fixed * $by, 10000) if defined $fixed;
    return 0 if !defined $rate;

    my $base = $order->{amount}
               + ($u->{base} eq 'before' ? $order->{discount} : 0);

    return half_even($base * $rate * $by, 100_000_000);
}


# what is of the reward in which account

sub released { $_[0]{kind} eq 'cash' ? 'payable' : 'credit' }


sub status_of {
    my ($r) = @_;

    return $r->{status} if !$r->{open};

    return $r->{free} > 0 || $r->{reserved} > 0 ? 'approved'
         : $r->{reversed} > 0
           && $r->{reversed} + $r->{returned} + $r->{expired} >= $r->{amount}
           ? 'reversed'
         : $r->{paid} > 0 ? 'paid'
         : $r->{redeemed} > 0 ? 'redeemed'
         : $r->{returned} > 0 ? 'cancelled'
         : $r->{expired} > 0 ? 'expired'
         : $r->{kind} eq 'cash' ? 'paid' : 'redeemed';
}


sub in_order {
    return sort { ($a->{until} // 1 << 62) <=> ($b->{until} // 1 << 62)
                  || $a->{id} <=> $b->{id} } @_;
}


sub peers {
    my ($w, $r) = @_;

    return grep { $_->{open} && $_->{holder} eq $r->{holder}
                  && $_->{unit} eq $r->{unit}
                  && released($_) eq released($r) } @{ $w->{rewards} };
}


# debts are paid with what else is in the account

sub settle {
    my ($w, $r) = @_;

    for my $debt (sort { $a->{id} <=> $b->{id} } peers($w, $r)) {
        for my $other (in_order(peers($w, $r))) {
            last if $debt->{free} >= 0;
            next if $other->{free} <= 0;

            my $part = -$debt->{free} < $other->{free} ? -$debt->{free}
                                                       : $other->{free};
            $debt->{free} += $part;
            $other->{free} -= $part;
        }
    }
}


sub open_reward {
    my ($w, $r, $at) = @_;

    $r->{open} = 1;
    $r->{free} = $r->{amount} - $r->{reversed} - $r->{returned};

    # each step has its own second, as it has in the database

    $r->{until} = $at + 86400 * $r->{valid} + ($at == $now ? $w->{step} : 0)
        if $r->{valid};
    delete $r->{release};
    settle($w, $r);
}


sub give {
    my ($w, $customer, $trigger, $nth, $order) = @_;

    my $set = $w->{sets}[$customer->{version}];
    my $referrer = $w->{referrers}{ $customer->{referrer} };
    my $day = day_of($w, $order->{at});
    my (%chosen, @given, @skipped);

    # of each slot the one with a product comes first

    for my $u (@{ $set->{rules} }) {
        next if $u->{trigger} ne $trigger;
        next if $u->{products}
                && (!defined $order->{product}
                    || $u->{products}[0] ne $order->{product});
        next if $u->{nth} && $u->{nth} != $nth;
        next if $u->{every} && $nth % $u->{every};

        my $slot = "$u->{beneficiary} $u->{slot}";
        $chosen{$slot} = $u
            if !$chosen{$slot}
               || ($u->{products} && !$chosen{$slot}{products})
               || (!$u->{products} == !$chosen{$slot}{products}
                   && $u->{nth} && !$chosen{$slot}{nth});
    }

    for my $u (sort { $a->{position} <=> $b->{position} } values %chosen) {
        my $value = rule_value($w, $u, $nth, $day, $order,
                               $referrer->{commission});
        my $unit = $u->{kind} eq 'points' ? 'points' : 'USD';
        my %before = map { $_->{order} => 1 }
                     grep { $_->{customer} eq $customer->{name}
                            && $_->{trigger} eq $trigger
                            && $_->{slot} eq $u->{slot}
                            && $_->{beneficiary} eq $u->{beneficiary}
                            && $_->{status} ne 'reversed'
                            && status_of($_) ne 'reversed' }
                     @{ $w->{rewards} };
        my $part = $value;
        my $room;
        my $why;

        $part = $u->{max_amount}
            if $u->{max_amount} && $part > $u->{max_amount};

        if (defined $set->{cap} && $unit eq 'USD') {
            $room = $set->{cap};
            $room -= $_->{amount} > $_->{reversed} + $_->{returned}
                     ? $_->{amount} - $_->{reversed} - $_->{returned} : 0
                for grep { $_->{customer} eq $customer->{name}
                           && $_->{unit} eq 'USD' } @{ $w->{rewards} };
            $part = $room if $part > $room;
        }

        if ($u->{beneficiary} eq 'referrer'
            && $nth < ($u->{threshold} // $w->{threshold}))
        {
            $why = 'below the threshold';

        } elsif ($value <= 0) {
            $why = 'nothing';

        } elsif (defined $u->{times} && keys %before >= $u->{times}) {
            $why = 'given before';

        } elsif ($part <= 0) {
            $why = 'the cap of the referral is reached';
        }

        if (defined $why) {
            push @skipped, "$u->{beneficiary} $u->{slot} $why";
            next;
        }

        my $approval = $u->{approval} ? $u->{approval} eq 'manual'
                     : $unit eq 'USD' && defined $set->{approval_above}
                       && $part > $set->{approval_above};
        my $until = $order->{at} + 86400 * ($u->{hold_days} // 0);
        my $r = { id => ++$w->{ids}, order => $order->{ref},
                  customer => $customer->{name}, trigger => $trigger,
                  slot => $u->{slot}, beneficiary => $u->{beneficiary},
                  holder => $u->{beneficiary} eq 'referrer'
                            ? $customer->{referrer} : $customer->{name},
                  kind => $u->{kind}, unit => $unit, amount => $part,
                  valid => $u->{valid_days}, hold => $until,
                  status => 'pending', open => 0, free => 0, reserved => 0,
                  paid => 0, redeemed => 0, reversed => 0, returned => 0,
                  expired => 0 };

        push @{ $w->{rewards} }, $r;
        push @given, $r;

        if ($u->{beneficiary} eq 'referrer' && $referrer->{suspended}) {
            $r->{status} = 'held';

        } elsif (!$approval) {
            if ($u->{hold_days} && $until > $now) {
                $r->{release} = $until;

            } else {
                $r->{later} = 1;
            }
        }
    }

    # all of them are there before the first one is settled; the statuses told
    # are those before that

    my $told = join(', ', map { "$_->{beneficiary} $_->{slot} $_->{amount}"
                                . " $_->{unit} "
                                . ($_->{later} ? 'approved' : $_->{status}) }
                          @given);

    for my $r (@given) {
        open_reward($w, $r, $now) if delete $r->{later};
    }

    return join('; ', grep { length($_) } $told, join(', ', @skipped));
}


# --- what can happen: each returns a command and what it has to say ---------

sub pick { return $_[ int(CORE::rand(scalar(@_))) ] }
sub chance { return int(CORE::rand(100)) < $_[0] }
sub between { return $_[0] + int(CORE::rand($_[1] - $_[0] + 1)) }

sub when_ {
    my ($at) = @_;
    return POSIX::strftime('%Y-%m-%dT%H:%M:%SZ', gmtime($at));
}


sub random_rules {
    my ($w) = @_;

    my @rules;
    my $add = sub {
        my (%u) = @_;

        $u{position} = @rules + 1;
        $u{trigger} //= 'conversion';
        $u{base} //= pick('before', 'after');
        $u{times} = pick(1, 1, 2, undef) if !exists $u{times};
        $u{hold_days} = between(1, 40) if chance(40);
        $u{valid_days} = between(5, 60) if chance(40);
        $u{approval} = pick('auto', 'manual') if chance(15);
        $u{max_amount} = between(1, 3000) if chance(15);
        $u{threshold} = between(1, 3) if chance(15);

        if (chance(30)) {
            $u{seasons} = [ map {
                my $from = between(1, 40);
                { from => day_of($w, $now - 86400 * $from),
                  until => day_of($w, $now - 86400 * between(0, $from)),
                  multiplier_bp => between(1, 30000) }
            } 1 .. between(1, 2) ];
        }

        push @rules, \%u;
    };
    my $value = sub {
        return (amount => between(1, 5000)) if chance(40);
        return (rate_bp => between(1, 5000)) if chance(50);

        my $from = 0;
        return (tiers => [ map {
            $from += between(1, 2);
            { from => $from, chance(50) ? (amount => between(1, 5000))
                                        : (rate_bp => between(1, 5000)) }
        } 1 .. between(1, 3) ]);
    };

    my $kind = pick('cash', 'cash', 'credit', 'points');
    $add->(slot => 'main', beneficiary => 'referrer', kind => $kind,
           $value->());
    $add->(slot => 'main', beneficiary => 'referrer', kind => $kind,
           products => [ 'p1' ], $value->())
        if chance(30);
    $add->(slot => 'main', beneficiary => 'referee',
           kind => pick('credit', 'points', 'cash'), $value->())
        if chance(60);
    $add->(slot => 'bonus', beneficiary => 'referrer', times => undef,
           kind => pick('cash', 'points'), nth => between(1, 4),
           amount => between(1, 9000))
        if chance(40);
    $add->(slot => 'often', beneficiary => 'referrer', kind => 'cash',
           every => between(1, 3), amount => between(1, 9000))
        if chance(30);
    $add->(slot => 'hello', trigger => 'registration', times => 1,
           beneficiary => pick('referrer', 'referee'), kind => 'points',
           amount => between(1, 50))
        if chance(40);

    return { rules => \@rules,
             cap => chance(60) ? between(100, 9000) : undef,
             approval_above => chance(60) ? between(0, 4000) : undef };
}


sub rules_command {
    my ($w, $set) = @_;

    my @rules = map {
        my %u = %$_;
        delete $u{position};
        $u{hold} = delete($u{hold_days}) . ' days' if $u{hold_days};
        $u{valid_for} = delete($u{valid_days}) . ' days' if $u{valid_days};
        delete $u{base} if $u{trigger} eq 'registration';
        \%u;
    } @{ $set->{rules} };

    my %options = map { $_ => $set->{$_} }
                  grep { defined $set->{$_} } 'cap', 'approval_above';

    return sprintf("referral.reward_rules_set((SELECT id FROM"
                   . " referral.program WHERE organisation_id = org('%s')),"
                   . " '%s', '%s')", $w->{name}, $json->encode(\@rules),
                   $json->encode(\%options));
}


sub change_rules {
    my ($w) = @_;

    push @{ $w->{sets} }, random_rules($w);

    return (rules_command($w, $w->{sets}[-1]), $#{ $w->{sets} });
}


sub customer {
    my ($w) = @_;

    my $name = 'c' . ++$w->{names};

    return $w->{customers}{$name} = {
        name => $name, version => $#{ $w->{sets} },
        referrer => pick(sort keys %{ $w->{referrers} }) };
}


sub register {
    my ($w) = @_;

    # who is suspended is credited no more
    my $c = customer($w);
    my $f = $w->{referrers}{ $c->{referrer} };

    if ($f->{suspended}) {
        delete $w->{customers}{ $c->{name} };
        return;
    }

    $c->{known} = 1;
    give($w, $c, 'registration', ++$f->{registered},
         { at => $now, amount => 0, discount => 0, ref => "/$c->{name}" });

    return (sprintf("referral.referral_register(NULL, '%s') ->> 'outcome'",
                    $json->encode({ external_id => $c->{name}, code =>
                                    uc("$w->{name}-$c->{referrer}") })),
            'registered');
}


sub convert {
    my ($w) = @_;

    if (@{ $w->{orders} } && chance(10)) {
        my $o = pick(@{ $w->{orders} });
        return ($o->{command}, $o->{expected});
    }

    my $c = %{ $w->{customers} } && chance(60)
            ? $w->{customers}{ pick(sort keys %{ $w->{customers} }) }
            : customer($w);
    my $f = $w->{referrers}{ $c->{referrer} };

    if ($f->{suspended} && !$c->{nth} && !exists $c->{known}) {
        delete $w->{customers}{ $c->{name} };
        return;
    }

    my $o = { ref => 'o' . ++$w->{order}, customer => $c, refunded => 0,
              amount => chance(5) ? 0 : between(1, 50000),
              discount => chance(40) ? between(0, 5000) : 0,
              product => chance(50) ? pick('p1', 'p2') : undef,
              at => $now - 86400 * between(0, 45) - 3600 * between(2, 20) };

    $c->{nth} //= ++$f->{converted};
    $c->{known} = 1;
    my $expected = give($w, $c, 'conversion', $c->{nth}, $o);

    $o->{expected} = join('; ', $c->{nth}, length($expected) ? $expected : ());
    $o->{command} = sprintf("given(referral.conversion_record(org('%s'),"
        . " '%s'))", $w->{name}, $json->encode({
            order_ref => $o->{ref}, external_id => $c->{name},
            code => uc("$w->{name}-$c->{referrer}"), amount => $o->{amount},
            discount => $o->{discount}, occurred_at => when_($o->{at}),
            defined $o->{product} ? (product => $o->{product}) : () }));
    push @{ $w->{orders} }, $o;

    return @$o{'command', 'expected'};
}


sub refund {
    my ($w) = @_;

    my $o = pick(@{ $w->{orders} }) or return;
    my $left = $o->{amount} - $o->{refunded};
    my $amount = chance(30) ? $left : between(1, $o->{amount} || 1);
    my $command = sprintf("taken(referral.refund_record(org('%s'), '%s'))",
        $w->{name}, $json->encode({ order_ref => $o->{ref}, amount => $amount,
                                    refund_ref => 'r' . ++$w->{refund} }));

    return ($command, 'RF072')
        if $o->{cancelled} || $amount > $left
           || ($amount == 0 && $o->{amount} > 0);

    $o->{refunded} += $amount;
    $o->{cancelled} = $o->{refunded} == $o->{amount};
    my @taken;

    for my $r (grep { $_->{order} eq $o->{ref} } @{ $w->{rewards} }) {
        my $all = $o->{cancelled} ? $r->{amount}
                : half_even($r->{amount} * $o->{refunded}, $o->{amount});
        my $most = $r->{amount} - $r->{returned} - $r->{expired};
        my $part = ($all < $most ? $all : $most) - $r->{reversed};

        next if $part <= 0;

        $r->{reversed} += $part;
        push @taken, "$part $r->{unit}";

        if ($r->{open}) {
            $r->{free} -= $part;
            settle($w, $r);

        } elsif ($r->{reversed} == $r->{amount}) {
            $r->{status} = 'reversed';
            delete $r->{release};
        }
    }

    return ($command, @taken ? join(', ', @taken) : 'nothing');
}


sub reward_command {
    my ($w, $r, $what, $more) = @_;

    return sprintf("referral.reward_%s(reward('%s', '%s', '%s', '%s')%s)",
                   $what, $w->{name}, $r->{order}, $r->{beneficiary},
                   $r->{slot}, $more // '');
}


sub some_reward {
    my ($w) = @_;
    return pick(grep { $_->{trigger} eq 'conversion' } @{ $w->{rewards} });
}


sub approve {
    my ($w) = @_;

    my $r = some_reward($w) or return;
    my $command = reward_command($w, $r, 'approve');
    my $status = status_of($r);

    if ($status eq 'held' || ($status eq 'pending' && !$r->{release})) {
        $r->{status} = 'pending';

        if ($r->{hold} > $now) {
            $r->{release} = $r->{hold};

        } else {
            open_reward($w, $r, $now);
        }

    } elsif ($status ne 'approved' && $status ne 'pending') {
        return ($command, 'RF073');
    }

    return ($command, 'ok');
}


sub hold {
    my ($w) = @_;

    my $r = some_reward($w) or return;
    my $command = reward_command($w, $r, 'hold');

    return ($command, 'RF073') if status_of($r) !~ /^(?:pending|held)$/;

    $r->{status} = 'held';
    delete $r->{release};

    return ($command, 'ok');
}


sub give_back {
    my ($r) = @_;

    if ($r->{open}) {
        $r->{returned} += $r->{free};
        $r->{free} = 0;

    } else {
        $r->{returned} = $r->{amount} - $r->{reversed};
        $r->{status} = 'rejected';
        delete $r->{release};
    }
}


sub reject {
    my ($w) = @_;

    my $r = some_reward($w) or return;
    my $command = reward_command($w, $r, 'reject', ", 'so'");
    my $status = status_of($r);

    return ($command, 'ok') if $status eq 'rejected';
    return ($command, 'RF073') if $status !~ /^(?:pending|held)$/;

    give_back($r);

    return ($command, 'ok');
}


sub cancel {
    my ($w) = @_;

    my $r = some_reward($w) or return;
    my $command = reward_command($w, $r, 'cancel', ", 'so'");
    my $status = status_of($r);

    return ($command, 'ok') if $status =~ /^(?:cancelled|rejected)$/;
    return ($command, 'RF073')
        if $status !~ /^(?:pending|held|approved)$/
           || ($r->{open} && $r->{free} <= 0);

    give_back($r);

    return ($command, 'ok');
}


# an hour and some days from now; only this world's rewards can be due, as
# those of the others were released and expired at their ends

sub release {
    my ($w, $days) = @_;

    $days //= between(0, 50);
    my $at = $now + 3600 + 86400 * $days;
    my $n = 0;

    for my $r (grep { defined $_->{release} && $_->{release} <= $at }
               @{ $w->{rewards} })
    {
        $n++;

        if ($r->{beneficiary} eq 'referrer'
            && $w->{referrers}{ $r->{holder} }{suspended})
        {
            $r->{status} = 'held';
            delete $r->{release};

        } else {
            open_reward($w, $r, $at);
        }
    }

    return ("referral.reward_release(to_timestamp($at))", $n);
}


sub expire {
    my ($w, $days) = @_;

    $days //= between(0, 80);
    my $at = $now + 7200 + 86400 * $days;
    my $n = 0;

    for my $r (grep { $_->{open} && $_->{until} && $_->{until} <= $at
                      && $_->{free} > 0 } @{ $w->{rewards} })
    {
        $n++;
        $r->{expired} += $r->{free};
        $r->{free} = 0;
    }

    return ("referral.reward_expire(to_timestamp($at))", $n);
}


sub usable {
    my ($w, $holder, $account, $unit) = @_;

    return in_order(grep { $_->{open} && $_->{holder} eq $holder
                           && released($_) eq $account
                           && $_->{unit} eq $unit && $_->{free} > 0
                           && (!$_->{until} || $_->{until} > $now) }
                    @{ $w->{rewards} });
}


sub payout_request {
    my ($w) = @_;

    my $who = pick(sort keys %{ $w->{referrers} });
    my @rewards = usable($w, $who, 'payable', 'USD');
    my $all = 0;
    $all += $_->{free} for @rewards;

    my $amount = chance(50) ? undef : between(1, $all + $all / 5 + 1);
    my $key = 'p' . ++$w->{payout};
    my $command = sprintf("referral.payout_request(referrer('%s', '%s'),"
        . " '%s') > 0", $w->{name}, $who, $json->encode({
            idempotency_key => $key,
            defined $amount ? (amount => $amount) : () }));

    return ($command, 'RF109') if $w->{referrers}{$who}{suspended};
    return ($command, $all ? 'RF110' : 'RF108|RF110')
        if $all == 0 || ($amount // $all) > $all;

    my $wanted = $amount // $all;
    my %parts;

    for my $r (@rewards) {
        my $part = $wanted < $r->{free} ? $wanted : $r->{free};
        last if $part == 0;
        $r->{free} -= $part;
        $r->{reserved} += $part;
        $parts{ $r->{id} } = $part;
        $wanted -= $part;
    }

    push @{ $w->{payouts} }, { key => $key, parts => \%parts };

    return ($command, 'true');
}


sub payout_end {
    my ($w) = @_;

    my $p = shift @{ $w->{payouts} } or return;
    my $end = pick('pay', 'pay', 'reject', 'cancel');
    my %r = map { $_->{id} => $_ } @{ $w->{rewards} };

    for my $id (sort { $a <=> $b } keys %{ $p->{parts} }) {
        my $r = $r{$id};
        $r->{reserved} -= $p->{parts}{$id};
        $r->{ $end eq 'pay' ? 'paid' : 'free' } += $p->{parts}{$id};
    }

    settle($w, $r{$_}) for $end eq 'pay' ? () : (keys %{ $p->{parts} })[0];

    my $id = "payout('$w->{name}', '$p->{key}')";

    return $end eq 'pay'
        ? ([ "referral.payout_approve($id)", "referral.payout_pay($id, 'x')" ],
           'ok')
        : ("referral.payout_$end($id, 'so')", 'ok');
}


sub redeem {
    my ($w) = @_;

    my $who = pick(sort keys %{ $w->{referrers} });
    my $unit = pick('USD', 'points');
    my @rewards = usable($w, $who, 'credit', $unit);
    my $all = 0;
    $all += $_->{free} for @rewards;

    my $wanted = between(1, $all + 1);
    my $command = sprintf("referral.redeem(org('%s'), '%s', jsonb_build_object("
        . "'referrer_id', referrer('%s', '%s'), 'unit', '%s', 'amount', %d))"
        . " ->> 'amount'", $w->{name}, 'u' . ++$w->{redeem}, $w->{name}, $who,
        $unit, $wanted);

    return ($command, 'RF110') if $all == 0;

    $wanted = $all if $wanted > $all;
    my $left = $wanted;

    for my $r (@rewards) {
        my $part = $left < $r->{free} ? $left : $r->{free};
        $r->{free} -= $part;
        $r->{redeemed} += $part;
        $left -= $part;
    }

    return ($command, $wanted);
}


sub suspend {
    my ($w) = @_;

    my $who = pick(sort keys %{ $w->{referrers} });
    my $f = $w->{referrers}{$who};
    $f->{suspended} = !$f->{suspended};

    return (sprintf("referral.referrer_set_status(referrer('%s', '%s'), '%s')",
                    $w->{name}, $who,
                    $f->{suspended} ? 'suspended' : 'active'), 'ok');
}


# --- a world, and what has to be there in the end ---------------------------

sub balances {
    my ($w) = @_;

    my %b;

    for my $r (@{ $w->{rewards} }) {
        my $in = sub { $b{"$r->{holder} $_[0] $r->{unit}"} += $_[1] };

        $in->('pending', $r->{amount} - $r->{reversed} - $r->{returned})
            if !$r->{open};
        $in->(released($r), $r->{free}) if $r->{open};
        $in->('reserved', $r->{reserved});
        $in->('paid', $r->{paid});
        $in->('redeemed', $r->{redeemed});
        $in->('expired', $r->{expired});
        $in->('expense', $r->{reversed} + $r->{returned} - $r->{amount});
    }

    return join("\n", sort map { "$_ $b{$_}" } grep { $b{$_} } keys %b);
}


sub statuses {
    my ($w) = @_;

    return join("\n", sort map {
        join(' ', $_->{customer}, $_->{trigger}, $_->{order} =~ m{^/} ? '-'
             : $_->{order}, $_->{beneficiary}, $_->{slot}, $_->{amount},
             status_of($_), $_->{reversed}, $_->{returned}, $_->{expired})
    } @{ $w->{rewards} });
}


sub world {
    my ($number) = @_;

    srand($number);

    my $w = { name => "w$number", zone => pick('UTC', 'America/New_York',
                  'Asia/Kolkata', 'Pacific/Auckland'),
              threshold => pick(1, 1, 1, 2), rewards => [], orders => [],
              payouts => [], customers => {}, sets => [ undef ],
              referrers => { a => {}, b => {} } };

    $w->{referrers}{b}{commission} = between(1, 9000) if chance(40);

    my @steps;
    my $step = sub { push @steps, { command => $_[0], expected => $_[1] } };

    $step->(sprintf("referral.organisation_create('%s', 'W') > 0", $w->{name}),
            'true');
    $step->(sprintf("referral.program_create(org('%s'), 'p', 'P', '%s') > 0",
                    $w->{name}, $json->encode({
                        landing_url => 'https://example.com/',
                        time_zone => $w->{zone},
                        reward_threshold => $w->{threshold} })), 'true');
    $step->(change_rules($w));
    $step->("referral.program_set_status((SELECT id FROM referral.program"
            . " WHERE organisation_id = org('$w->{name}')), 'active')", 'ok');

    for my $who (sort keys %{ $w->{referrers} }) {
        my $bp = $w->{referrers}{$who}{commission};
        $step->(sprintf("referral.referrer_create(org('%s'), 'customer',"
                        . " '%s') > 0", $w->{name}, $json->encode({
                            external_id => $who,
                            defined $bp ? (commission_bp => $bp) : () })),
                'true');
        $step->(sprintf("(referral.code_create((SELECT id FROM"
                        . " referral.program WHERE organisation_id ="
                        . " org('%s')), referrer('%s', '%s'), '%s')).code",
                        $w->{name}, $w->{name}, $who, uc("$w->{name}-$who")),
                uc("$w->{name}-$who"));
    }

    my @kinds = ((\&register) x 6, (\&convert) x 30, (\&refund) x 16,
                 (\&approve) x 8, (\&reject) x 3, (\&cancel) x 3,
                 (\&hold) x 2, (\&release) x 6, (\&expire) x 5,
                 (\&payout_request) x 8, (\&payout_end) x 7, (\&redeem) x 6,
                 (\&suspend) x 2, (\&change_rules) x 1);

    for (1 .. 36) {
        $w->{step} = $_;
        my ($commands, $expected) = pick(@kinds)->($w);
        next if !defined $commands;
        $step->($_, $expected) for ref $commands ? @$commands : $commands;
    }

    # nothing is left that another world could release or let expire

    $step->(release($w, 400));
    $step->(expire($w, 800));

    $step->(sprintf(<<'SQL' =~ s/\s+/ /gr, $w->{name}), balances($w) || 'ok');
(SELECT string_agg(concat_ws(' ', coalesce(f.external_id,
 r.referee_external_id), b.kind, b.unit, b.balance), E'\n' ORDER BY
 concat_ws(' ', coalesce(f.external_id, r.referee_external_id), b.kind,
 b.unit, b.balance) COLLATE "C")
 FROM referral.balances b
 LEFT JOIN referral.referrer f ON f.id = b.referrer_id
 LEFT JOIN referral.referral r ON r.id = b.referral_id
 WHERE b.organisation_id = org('%s') AND b.balance <> 0)
SQL
    $step->(sprintf(<<'SQL' =~ s/\s+/ /gr, $w->{name}), statuses($w) || 'ok');
(SELECT string_agg(line, E'\n' ORDER BY line COLLATE "C") FROM (SELECT
 concat_ws(' ', r.referee_external_id, w.trigger, coalesce(c.order_ref, '-'),
 w.beneficiary, w.slot, w.amount, w.status, w.reversed, w.returned,
 w.expired) AS line
 FROM referral.reward w JOIN referral.referral r ON r.id = w.referral_id
 LEFT JOIN referral.conversion c ON c.id = w.conversion_id
 WHERE w.organisation_id = org('%s')) l)
SQL

    return @steps;
}


# --- a thousand steps or so at a time ---------------------------------------

my ($done, $wrong) = (0, 0);

for (my $n = $seed; $n < $seed + $worlds && $wrong < 3; ) {
    my @steps;

    while (@steps < 1000 && $n < $seed + $worlds) {
        push @steps, map { { %$_, world => $n } } world($n);
        $n++;
    }

    my $script = join('', map { my $c = $_->{command} =~ s/'/''/gr;
                                "SELECT try('$c');\n" } @steps);
    $t->write_file('steps.sql', "\\pset recordsep_zero on\n"
                                . "SET client_min_messages = warning;\n"
                                . "SET plan_cache_mode ="
                                . " force_generic_plan;\n$script");
    my $r = $t->run('psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
                    '-d', $pg->conninfo(), '-f', $t->dir() . '/steps.sql');
    my @said = split(/\0\n?/, $r->{output});

    is($r->{status}, 0, 'every step was committed')
        or diag(substr($r->{output}, -2000));
    is(scalar(@said), scalar(@steps), 'every step said something');

    my $last = 0;

    for my $i (0 .. $#steps) {
        my ($step, $said) = ($steps[$i], $said[$i] // 'nothing');
        my $expected = $step->{expected} // 'ok';

        $done++;
        next if grep { $said eq $_ } $expected =~ /^RF\d+\|/
                                     ? split(/\|/, $expected) : $expected;
        next if $step->{world} == $last;

        $last = $step->{world};
        $wrong++;
        is($said, $expected, "world $last: $step->{command}");

        my @before = grep { $steps[$_]{world} == $last } 0 .. $i;
        diag("REFERRAL_LEDGER_SEED=$last REFERRAL_LEDGER_WORLDS=1\n",
             map { "$steps[$_]{command}\n    -> " . ($said[$_] // '') . "\n" }
             @before);
    }
}

is($wrong, 0, "$done steps in $worlds worlds went as they were reckoned");
is_deeply([ $pg->rows('SELECT * FROM referral.ledger_check()') ], [],
          'the checker has nothing to say');
cmp_ok($pg->value("SELECT count(*) FROM referral.transfer"
                  . " WHERE kind = '$_'"), '>', 0, "there was: $_")
    for $worlds >= 150 ? qw(reward approval rejection cancellation expiry
                           reversal clawback settlement payout_request payout
                           payout_return redemption) : ();

$t->done();
