#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# tools/bench: a tiny run of every contender ends, with figures that can be.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Referral::Test;


if ($ENV{REFERRAL_ASAN}) {
    plan(skip_all => 'nothing is measured with sanitizers');
}

for (qw(wrk h2load valgrind)) {
    my $program = $_;

    plan(skip_all => "needs $program: tools/packages bench")
        unless grep { -x "$_/$program" } split(/:/, $ENV{PATH});
}

plan(skip_all => 'needs libnginx-mod-http-lua: tools/packages bench')
    unless -e '/usr/lib/nginx/modules/ngx_http_lua_module.so';

my $t = Referral::Test->new();
my $bench = $t->root() . '/tools/bench';

is($t->run($bench, '--help')->{status}, 0, 'help');
is($t->run($bench, 'nothing')->{status}, 2, 'no such group');

my $r = $t->run('sh', '-c', 'exec "$@" 2> "$0"', $t->path('stderr'), $bench,
                '--json', '--fast', '--rounds', 1, '--seconds', 0.3,
                '--scale', 0.002, '--networks', 12_000, '--port',
                $t->port('first'));

is($r->{status}, 0, 'a tiny run of all') or diag($t->read_file('stderr'));

my $doc = eval { JSON::PP::decode_json($r->{output}) };

is($@, '', 'one JSON document') or diag($r->{output});

my @contenders = qw(
    return302 redirect lua
    page page_off page_ref proxy proxy_off proxy_ref
    codes_10 codes_1000 codes_100k codes_1m codes_10_zipf codes_1000_zipf
    codes_100k_zipf codes_1m_zipf codes_1m_small_zone_uniform
    codes_1m_small_zone_zipf
    cached cached_between cached_frozen cached_dead cached_slow
    uncached uncached_frozen uncached_dead uncached_slow
    return302_h2 redirect_h2 return302_2w redirect_2w);

is_deeply([ sort keys %{ $doc->{cpu_us} } ], [ sort @contenders ],
          'every contender');

for my $name (@contenders) {
    my $cpu = $doc->{cpu_us}{$name} // 0;

    ok($cpu > 0.5 && $cpu < 2000, "$name: $cpu us of CPU a request");
    cmp_ok($doc->{rps}{$name}, '>', 5, "$name: requests a second");
    cmp_ok($doc->{p99_us}{$name}, '>=', $doc->{p50_us}{$name},
           "$name: latency") unless $name =~ /_h2$/;
}

cmp_ok($doc->{ratio}{$_} // 0, '>', 0, "ratio $_")
    for qw(redirect lua lua_redirect param_page off_page frozen_p99 codes_1m
           flush_copy flush_copy_hot flush_copy_uniform instructions
           instructions_page instructions_param);

# a target is said to be met when the ratio says so

for my $name (qw(redirect lua_redirect off_page param_page frozen_p99
                 flush_copy codes_1m))
{
    my $target = $doc->{target}{$name};
    my ($op, $n) = split(' ', $target->{reach} // '');
    my $ratio = $doc->{ratio}{$name};

    is(!!$target->{met}, !!($op eq '<=' ? $ratio <= $n : $ratio >= $n),
       "target $name, $target->{reach}");
}

for (sort keys %{ $doc->{quartiles} }) {
    my ($low, $high) = @{ $doc->{quartiles}{$_} };
    ok($low <= $doc->{ratio}{$_} && $doc->{ratio}{$_} <= $high,
       "ratio $_ between its quartiles");
}

is_deeply([ sort keys %{ $doc->{busy} } ],
          [ sort qw(click page codes redis tls flush cycles) ],
          'whether others took the machine, for each group');

for my $kind (qw(hot uniform)) {
    is($doc->{flush}{$kind}{rows}, 10_000, "flush, $kind");
    cmp_ok($doc->{flush}{$kind}{$_}, '>', 0, "flush, $kind: $_")
        for qw(rows_s copy_rows_s staging_rows_s cpu_us_row);
}

cmp_ok($doc->{cycles}{$_}, '>', 1000, "instructions: $_")
    for 'whole request', 'page, module not loaded', 'page, no click',
        'page, ?ref=';
ok(exists $doc->{cycles}{"  $_"}, "instructions: $_")
    for 'geo', 'id', 'cookie, signed', 'journal, encoded and appended';

$t->done();
