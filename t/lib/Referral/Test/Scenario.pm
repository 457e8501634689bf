package Referral::Test::Scenario;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Scenario - runs tables of fault scenarios

=head1 SYNOPSIS

    use Referral::Test::Scenario;

    sub kill_worker {
        my ($s) = @_;                     # a Referral::Test::Stand

        $s->load();
        $s->worker()->kill9()->start();

        return $s->settle();              # the oracle's judgement
    }

    Referral::Test::Scenario::run(
        [ 'kill-worker', 'kill -9 of the worker', \&kill_worker,
          { workers => 1 } ],             # options of the stand
    );

=head1 DESCRIPTION

Options, beside those of the stand: root => 1 needs root, faults => 1 needs a
build made with FAULTS=1, needs => [programs], bare => 1 gets no stand (the
function makes its own), must_fail => 1: the judgement has to find something,
because a guard is off; expect => qr/.../ is what it then says.

The scenarios to run can be named in REFERRAL_SCENARIOS, separated by spaces.
A line of the table is added to the file REFERRAL_FAULTS_TABLE after each.

=cut

use strict;
use warnings;

use Exporter qw(import);
use Test::More;
use Time::HiRes qw(time);

use Referral::Test::Stand;


our @EXPORT_OK = qw(points fault_build);

my ($is_fault_build, %points);


# whether the programs under test were made with FAULTS=1

sub fault_build {
    return $is_fault_build if defined $is_fault_build;

    my $build = $ENV{REFERRAL_BUILD} // Referral::Test->top() . '/build';
    my $text = qx("$build/referralctl" --version 2>&1) // '';

    return $is_fault_build = $text =~ /fault/i ? 1 : 0;
}


sub unavailable {
    my ($opt) = @_;

    return 'needs root' if $opt->{root} && $> != 0;
    return 'needs a build with FAULTS=1' if $opt->{faults} && !fault_build();

    # both want to be the first library of the process

    return 'needs a build without sanitizers'
        if $ENV{REFERRAL_ASAN} && grep { $_ eq 'faketime' }
                                       @{ $opt->{needs} // [] };

    for my $program (@{ $opt->{needs} // [] }) {
        return "needs $program"
            unless grep { -x "$_/$program" } split(/:/, $ENV{PATH}),
                                             '/usr/sbin', '/usr/local/sbin';
    }

    return undef;
}


sub run {
    my (@table) = @_;

    my %wanted = map { $_ => 1 } split(' ', $ENV{REFERRAL_SCENARIOS} // '');

    for my $row (@table) {
        next if %wanted && !$wanted{$row->[0]};
        one(@$row);
    }

    ok(!Referral::Test::Stand::end(), 'Postgres ends');
    done_testing();
}


# one scenario as one test, with its line in the table

sub one {
    my ($name, $what, $sub, $opt) = @_;

    $opt //= {};

    my $skip = unavailable($opt);

    if (defined $skip) {
        SKIP: { skip("$name: $skip", 1); }
        line($name, undef, 0, "skipped: $skip");
        return;
    }

    my $start = time();
    my ($s, $v, @wrong);

    eval {
        $s = Referral::Test::Stand->new(%$opt) unless $opt->{bare};
        $v = $sub->($s);
        1;
    } or push @wrong, 'died: ' . ($@ || 'unknown');

    push @wrong, @{ $v->{wrong} } if $v;

    if ($s) {
        my @problems = eval { $s->close() };
        push @problems, "closing: $@" if $@;
        push @wrong, map { "log: $_" } @problems;
    }

    if ($opt->{must_fail}) {
        my $expect = $opt->{expect} // qr/./;
        my @hit = grep { $_ =~ $expect } @wrong;

        ok(@hit > 0, "$name: $what: is found out")
            or diag(join("\n", 'nothing of the kind was found', @wrong));
        note($_) for @hit;
        line($name, $v, time() - $start, @hit ? 'red, as it must be'
                                              : 'GREEN, NOT FOUND OUT');
        return;
    }

    ok(!@wrong, "$name: $what") or diag(join("\n", @wrong));

    line($name, $v, time() - $start, @wrong ? 'FAILED' : '');
}


# requests, accepted, dropped, reported, lost, doubled, seconds

sub line {
    my ($name, $v, $seconds, $remark) = @_;

    my $file = $ENV{REFERRAL_FAULTS_TABLE};
    my @numbers = $v ? map { $v->{$_} // '-' }
                       qw(requests accepted refused unanswered gap lost
                          doubled)
                     : ('-') x 7;

    # what is reported as a gap is not lost without a word

    $numbers[5] -= $numbers[4] if $v && $v->{damage};

    my $text = sprintf("%-28s %8s %8s %8s %10s %6s %6s %7s %7.1f  %s",
                       $name, @numbers, $seconds, $remark);

    $text =~ s/\s+\z//;

    if (!defined $file) {
        note($text);
        return;
    }

    open(my $fh, '>>', $file) or die "$file: $!\n";
    print $fh "$text\n";
    close($fh);
}


# (file): the table with its head, and its sums

sub table {
    my ($file) = @_;

    open(my $fh, '<', $file) or return "no scenario ran\n";
    my @lines = <$fh>;

    my ($requests, $accepted, $lost, $doubled, $failed) = (0) x 5;

    for (@lines) {
        my @f = split(' ');

        $failed++ if /FAILED|NOT FOUND OUT/;
        next if $f[1] !~ /^\d/;

        $requests += $f[1];
        $accepted += $f[2];

        # a guard was off: this is what it guards from

        next if /red, as it must be/;

        $lost += $f[6];
        $doubled += $f[7];
    }

    my $head = sprintf('%-28s %8s %8s %8s %10s %6s %6s %7s %7s', 'scenario',
                       qw(requests accepted refused unanswered gaps lost
                          doubled seconds));

    return "$head\n" . join('', @lines)
           . sprintf("%d scenarios, %d failed; %d requests, %d accepted,"
                     . " %d lost, %d doubled\n", scalar(@lines), $failed,
                     $requests, $accepted, $lost, $doubled);
}


1;
