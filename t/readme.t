#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# README.md against the programs: every directive, variable, setting, metric
# and command is there, directives with their contexts; links lead somewhere;
# the tokens shown verify.

use strict;
use warnings;

use Test::More;

use Referral::Test;


my $t = Referral::Test->new();
my $root = $t->root();
my $readme = $t->read_file("$root/README.md");

# directives

my $source = $t->read_file("$root/src/module/ngx_http_referral_module.c");
my ($table) = $source =~ /ngx_http_referral_commands\[\] = \{(.*?)^\};/ms;
my %directives;

while ($table =~ /ngx_string\("(\w+)"\),\s*([A-Z0-9_|\s]+),/g) {
    my ($name, $flags) = ($1, $2);

    $directives{$name} = join(', ',
        ($flags =~ /NGX_HTTP_MAIN_CONF/ ? 'http' : ()),
        ($flags =~ /NGX_HTTP_SRV_CONF/ ? 'server' : ()),
        ($flags =~ /NGX_HTTP_LOC_CONF/ ? 'location' : ()));
}

cmp_ok(scalar(keys %directives), '>=', 21, 'the directives are found');

for my $name (sort keys %directives) {
    my ($section) = $readme =~ /^### \Q$name\E\n(.*?)^##/ms;

    ok($section, "$name is described") or next;

    like($section, qr/\| Syntax \| \*\*\Q$name\E\*\*/, "$name: syntax");
    like($section, qr/\| Default \| \S/, "$name: default");
    my ($context) = $section =~ /\| Context \| (.*?) \|/;
    is($context, $directives{$name}, "$name: context");
}

for ($readme =~ /^### (\w+)$/mg) {
    ok($directives{$_}, "$_ is a directive");
}

# variables

$source = $t->read_file("$root/src/module/ngx_http_referral_variables.c");

for ($source =~ /ngx_string\("(referral_\w+)"\)/g) {
    like($readme, qr/`\$\Q$_\E`/, "\$$_ is described");
}

# settings of the worker, with their defaults

$source = $t->read_file("$root/src/worker/settings.c");

my ($settings) = $source
    =~ /referral_settings\[\] = \{\n(.*?)^\};/ms;
my $n = 0;

while ($settings =~ /\{ "(\w+)",.*?0?, (NULL|"[^"]*"), \w+, [^}]*\}/gs) {
    my ($name, $default) = ($1, $2);

    $default = $default eq 'NULL' ? 'required' : $default;
    $default =~ tr/"//d;

    like($readme, qr/^\| `\Q$name\E` \| \Q$default\E \|/m,
         "setting $name, $default");
    $n++;
}

cmp_ok($n, '>=', 9, 'the settings are found');

# metrics: a row has whole names, ends that are put on the beginning of its
# first name, and stars

my @rows = map { [ /`(\w[\w*]*)/g ] } $readme =~ /^\| (`referral_.*)$/mg;


sub described {
    my ($metric) = @_;

    for my $row (@rows) {
        for my $word (@$row) {
            my $head = $metric;

            return 1 if $word =~ /\*/
                        && $metric =~ ('^' . $word =~ s/\*/\\w+/gr . '$');
            return 1 if $word eq $metric;
            return 1 if $word =~ /^_/ && $head =~ s/\Q$word\E$//
                        && index($row->[0], $head) == 0;
        }
    }

    return 0;
}


my @metrics = $t->read_file("$root/src/worker/stat.c")
    =~ /"(?:[^"]*\\n)?(referral_worker_\w+)/g;

for ('ngx_http_referral_stat.h', 'ngx_http_referral_status.c') {
    push @metrics, map { "referral_$_" }
        $t->read_file("$root/src/module/$_")
            =~ /(?:^    X\(\w+, |_(?:gauge|family)\(s, )"(\w+)"/mg;
}

cmp_ok(scalar(@metrics), '>=', 80, 'the metrics are found');
ok(!described('referral_zone_nonsense'), 'what there is not is not found');

for (sort keys %{ { map { $_ => 1 } @metrics } }) {
    ok(described($_), "metric $_ is described");
}

# commands

my $r = $t->referralctl('--help');
my ($section) = $readme =~ /^## referralctl\n(.*?)^## /ms;
my $nouns = 0;

while ($r->{output} =~ /^  ([a-z]+) {2,}[a-z].*\n((?: {14}[a-z].*\n)*)/mg) {
    my ($noun, $verbs) = ($1, $2);
    my ($row) = $section =~ /^(\| `\Q$noun\E` \|.*)$/m;

    like($row // '', qr/`\Q$_\E`/, "referralctl $noun $_ is described")
        for split(' ', $verbs);
    ok($row, "referralctl $noun is described");
    $nouns++;
}

cmp_ok($nouns, '>=', 8, 'the commands are found');

# files and targets that it names

for ($readme =~ m{(?<![\w/.-])((?:t|src|sql|tools|conf-examples)/[\w./-]*\w)}g)
{
    ok(-e "$root/$_", "$_ exists");
}

my $makefile = $t->read_file("$root/Makefile");

for ($readme =~ /^ +make ([a-z-]+) /mg) {
    like($makefile, qr/^\Q$_\E:/m, "make $_");
}

# the scenarios that show what survives

my $scenarios = join('', map { $t->read_file($_) }
                     glob("$root/t/lib/Referral/Test/Fault/*.pm"),
                     "$root/src/core/referral_fault.c");
my ($guarantee) = $readme =~ /^## What survives what\n(.*?)^## /ms;
my @scenarios = $guarantee =~ /`([a-z]+(?:-[a-z]+)+)`(?= |$)/mg;

cmp_ok(scalar(@scenarios), '>=', 20, 'the scenarios are found');

for (@scenarios) {
    like($scenarios, qr/["' ]\Q$_\E["' ]/, "scenario $_");
}

# links

my %anchors = map { my $a = lc; $a =~ s/[^\w -]//g; $a =~ tr/ /-/; $a => 1 }
              $readme =~ /^#+ (.*)$/mg;

for ($readme =~ /\]\(#([^)]+)\)/g) {
    ok($anchors{$_}, "#$_ leads somewhere");
}

# tokens

my ($key) = $readme =~ /`(k1:[A-Za-z0-9+\/=]+)`/;
my @tokens = $readme =~ /^ +(v1\.\S{60,})$/mg;

is(scalar(@tokens), 2, 'two tokens');
$t->write_file('key', "$key\n", 0600);

for (@tokens) {
    $r = $t->referralctl('token', 'verify', '--secret', $t->path('key'),
                         '--max-age', '0', $_);
    is($r->{status}, 0, 'a token verifies') or diag($r->{output});

    (my $forged = $_) =~ s/SUMMER25/SUMMER26/;
    $r = $t->referralctl('token', 'verify', '--secret', $t->path('key'),
                         '--max-age', '0', $forged);
    is($r->{status}, 1, 'a changed one does not');
}

$t->done();
