#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Fault points: the tables name what the code has, and a build that is not for
# tests has nothing of them.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Referral::Test;

my $t = Referral::Test->new();
my $top = $t->root();

my %table;                              # point => 'kill', 'call' or 'guard'
my %used;                               # the same => places
my %event;                              # words of the worker's log

my $source = slurp("$top/src/core/referral_fault.c");

for my $part (split(/^static const referral_fault_t /m, $source)) {
    my ($kind) = $part =~ /^ referral_(points|guards)\[\]/ or next;
    ($part) = $part =~ /\{(.*?)\n\};/s;

    while ($part =~ /\{ "([a-z-]+)",\s*((?:"[^"]*"\s*)+),\s*(\w+) \}/g) {
        fail("$1 is named twice") if $table{$1};
        $table{$1} = $kind eq 'guards' ? 'guard' : $3 eq '0' ? 'kill' : 'call';
    }
}

cmp_ok(scalar(keys(%table)), '>', 50, 'the tables are read');

for my $file (glob("$top/src/*/*.c")) {
    next if $file =~ m{/referral_fault\.c$};
    my $text = slurp($file);

    $event{$1} = 1 while $text =~ /\breferral_log\([^"]*"([a-z-]+)"/g;

    push @{ $used{$2}{ { fault => 'kill', fault_half => 'kill',
                         fault_fails => 'call', guard => 'guard' }->{$1} } },
         $file
        while $text =~ /\breferral_(fault(?:_half|_fails)?|guard)\("([^"]*)"/g;
}

is_deeply([ grep { !$table{$_} } sort keys(%used) ], [],
          'all that the code has is in the tables');
is_deeply([ grep { !$used{$_} } sort keys(%table) ], [],
          'all that the tables have is in the code');
is_deeply([ grep { join(' ', %{ $used{$_} // {} }) !~ /^\Q$table{$_}\E ARRAY/ }
            sort keys(%table) ], [], 'as what they are');

is_deeply([ grep { my @places = map { @$_ } values(%{ $used{$_} });
                   @places != 1 } sort keys(%used) ], [],
          'each has one place');

# t/faults/points.t takes them from the table but for some

my $tests = join('', map { slurp($_) } glob("$top/t/*.t"),
                 glob("$top/t/lib/Referral/Test/Fault/*.pm"));

is_deeply([ grep { $table{$_} ne 'guard' && /^(?:publish|webhook|zone)-/
                   && index($tests, $_) < 0 } sort keys(%table) ], [],
          'those that are left out there are in another test');

# what is built

my $ctl = $t->referralctl('--version');
my $doc = JSON::PP->new()->utf8()->decode(
    $t->referralctl('--version', '--json')->{output});

if ($doc->{faults}) {
    like($ctl->{output}, qr/fault points: for tests only/, 'is said');
    is_deeply([ sort map { $_->{name} } @{ $doc->{faults} },
                                        @{ $doc->{guards} } ],
              [ sort keys(%table) ], 'all of them are listed');
    local $ENV{REFERRAL_FAULT} = 'nothing';
    is($t->referralctl('--version')->{status}, 2, 'no such point');
    is($t->run($t->build() . '/referral-worker', '-V')->{status}, 2,
       'nor in the worker');

    $t->allow(qr/there is no point/);
    $t->redis();
    $t->nginx(main => 'env REFERRAL_FAULT;',
              server => 'referral on; location / { return 204; }');
    $t->log_like(qr/\[emerg\].*there is no point "nothing": nothing is tested/,
                 'nor in nginx, which says so and goes on');
    is($t->get('/')->status(), 204, 'without it');

} else {
    unlike($ctl->{output}, qr/fault/, 'no word of it');

    for my $file ('referral-worker', 'referralctl',
                  'ngx_http_referral_module.so')
    {
        next unless -e $t->build() . "/$file";

        my $text = slurp($t->build() . "/$file");
        is_deeply([ grep { index($text, "$_\0") >= 0 }
                    'REFERRAL_FAULT', 'REFERRAL_NO_GUARD',
                    grep { $_ ne 'salt' && !$event{$_} } keys(%table) ], [],
                  "$file has none of the names");
    }

    local $ENV{REFERRAL_FAULT} = 'nothing';
    is($t->referralctl('--version')->{status}, 0, 'the environment is nothing');
}

$t->done();


sub slurp {
    my ($path) = @_;
    open(my $fh, '<:raw', $path) or die "$path: $!\n";
    local $/;
    return <$fh>;
}
