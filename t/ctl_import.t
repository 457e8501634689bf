#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl import and export: CSV, its traps, interruption, progress.

use strict;
use warnings;

use Test::More;
use JSON::PP;
use Time::HiRes qw(sleep time);
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $json = JSON::PP->new()->utf8();

delete @ENV{qw(REFERRAL_REDIS REFERRAL_ORG REFERRAL_ACTOR PGOPTIONS)};
$ENV{REFERRAL_DB} = $pg->conninfo();

my $ctl = $t->build() . '/referralctl';
my $file = $t->dir() . '/in.csv';

$pg->value("SELECT referral.organisation_create('acme', 'Acme')");
$pg->value("SELECT referral.program_create(1, '$_', '$_', '{\"landing_url\":"
           . " \"https://example.com/\"}')") for qw(p q big);


# (noun, parent, text): what referralctl NOUN import printed, as JSON

sub import_text {
    my ($noun, $parent, $text) = @_;

    $t->write_file('in.csv', $text);

    my $out = qx('$ctl' $noun import $parent '$file' --json 2> /dev/null);

    my $status = $? >> 8;
    my $doc = eval { $json->decode($out) } || {};

    return { %$doc, status => $status };
}


sub counts {
    my ($r) = @_;
    return join(' ', map { $r->{$_} // '-' }
                qw(created updated unchanged refused));
}


sub errors {
    my ($r) = @_;
    return { map { $_->{line} => $_->{message} } @{ $r->{errors} } };
}


# the first time, again, changed

my $r = import_text('code', 'p', "code,campaign,max_uses,expires_at\n"
                    . "ONE,tv,5,2030-01-01\ntwo,,,\n");

is($r->{status}, 0, 'an import');
is(counts($r), '2 0 0 0', 'makes codes');
is($pg->value("SELECT string_agg(code || coalesce(campaign, '-'), ' '"
              . ' ORDER BY id) FROM referral.codes'), 'ONEtv TWO-',
   'in capitals');

$r = import_text('code', 'p', "code,campaign,max_uses,expires_at\n"
                 . "ONE,tv,5,2030-01-01\ntwo,,,\n");
is(counts($r), '0 0 2 0', 'the same again changes nothing');

$r = import_text('code', 'p', "code,campaign\none,radio\nTWO,\nTHREE,x\n");
is(counts($r), '1 1 1 0', 'another one changes what differs');
is($pg->value("SELECT max_uses FROM referral.codes WHERE code = 'ONE'"), 5,
   'and what it does not name stays');

# traps

$r = import_text('code', 'p', "\xef\xbb\xbfCode, Campaign \r\n"
                 . "\r\nBOM,\"a, \"\"b\"\"\"\r\n\r\n");
is(counts($r), '1 0 0 0', 'a byte order mark, CRLF, empty lines, spaces');
is($pg->value("SELECT campaign FROM referral.codes WHERE code = 'BOM'"),
   'a, "b"', 'quotes and commas');

$r = import_text('code', 'p', "code,channel\nNL,\"two\nlines\"\nLAST,z");
is(counts($r), '2 0 0 0', 'a line end in quotes, none at the end');
is($pg->value("SELECT channel FROM referral.codes WHERE code = 'NL'"),
   "two\nlines", 'is kept');

$r = import_text('code', 'p', join("\n", 'code,campaign,max_uses',
    'GOOD1,,',                           # 2
    'TOO,FEW',                           # 3
    'TOO,MANY,1,2',                      # 4
    "UTF,\xff\xfe,",                     # 5
    "NUL,a\0b,",                         # 6
    'b d,,',                             # 7
    'good1,,',                           # 8: the same as 2
    '"x"y,,',                            # 9
    'NUM,,x',                            # 10
    'a"b,,',                             # 11
    "CR\r,,",                            # 12
    ',only,',                            # 13
    '"MULTI',                            # 14
    'LINE",,',                           # 15
    'GOOD2,,7', ''));                    # 16

is($r->{status}, 1, 'bad lines');
is(counts($r), '2 0 0 12', 'do not stop the others');
is_deeply(errors($r), {
    3 => '2 fields, the first line names 3',
    4 => '4 fields, the first line names 3',
    5 => 'campaign: this is not valid UTF-8',
    6 => 'campaign: this is not valid UTF-8',
    7 => 'code_import(): "b d" is no code',
    8 => 'line 2 has the same code',
    9 => 'something follows a closing quote',
    10 => 'code_import(): "max_uses": invalid input syntax for type integer:'
          . ' "x"',
    11 => 'a quote stands inside a field that does not begin with one',
    12 => 'a carriage return stands outside of quotes',
    13 => 'the row has neither "code" nor "external_id"',
    14 => "code_import(): \"MULTI\nLINE\" is no code",
}, 'each is named') or diag(explain($r));

is($pg->value("SELECT max_uses FROM referral.codes WHERE code = 'GOOD2'"), 7,
   'lines after them are read right');

$r = import_text('code', 'p', "code,campaign\nA1,x\nA2,\"never closed\nA3,y\n");
is(counts($r), '1 0 0 1', 'a quote that is never closed');
is_deeply(errors($r), { 3 => 'its quote is never closed' }, 'is named');

# the first line

for ([ '', qr/it is empty; the first line names the columns/ ],
     [ "\n\n", qr/it is empty/ ],
     [ "code,colour\nX,red\n", qr/no column "colour"; columns are code, ext/ ],
     [ "campaign\nx\n", qr/line 1: there is no column "code"/ ],
     [ "code,campaign,code\nx,y,z\n", qr/the column "code" stands there twice/ ],
     [ "code;campaign\nx;y\n", qr/no column "code;campaign"/ ],
     [ "\"code\"x\n", qr/line 1: something follows a closing quote/ ])
{
    my ($text, $says) = @$_;

    $t->write_file('in.csv', $text);
    my $r = $t->referralctl('code', 'import', 'p', $file);

    is($r->{status}, 1, 'a first line that is refused');
    like($r->{output}, $says, 'says why');
    unlike($r->{output}, qr/created/, 'and nothing is done');
}

is($t->referralctl('code', 'import', 'p', "$file.no")->{status}, 2,
   'no such file');
is($t->referralctl('code', 'import', 'nope', $file)->{status}, 1,
   'no such program');
is($t->referralctl('code', 'import', 'p', $file, '--db',
                   'host=/nonexistent')->{status}, 3, 'no server');

# standard input, and words for people

my $said = qx(printf 'code\\nSTDIN\\n' | '$ctl' code import p 2>&1);
is($? >> 8, 0, 'standard input');
is($said, "codes: 1 created, 0 updated, 0 unchanged, 0 refused\n", 'in words');

# referrers

$r = import_text('referrer', 'acme', "external_id,type,name,email,attributes,"
                 . "eligible\n7,student,Ana,ana\@example.com,\"{\"\"y\"\":1}\","
                 . "no\n8,,,,,\n9,wizard,,,,\n");
is(counts($r), '2 0 0 1', 'referrers');
like(errors($r)->{4}, qr/"type" is not acceptable/, 'a type that there is not');
is($pg->value('SELECT attributes FROM referral.referrers'
              . " WHERE external_id = '7'"), '{"y": 1}', 'JSON in a field');
$r = import_text('referrer', 'acme', "external_id,name\n7,Ana Maria\n8,\n");
is(counts($r), '0 1 1 0', 'a contact is changed');

# organisations and programs

my $orgs = "slug,name,status,currency,settings\nnorth,North,disabled,EUR,"
           . "\"{\"\"a\"\":1}\"\nsouth,,,,\nBAD,,,,\nwest,,,,{\n,x,,,\n";

$t->write_file('orgs.csv', $orgs);
my $org_file = $t->path('orgs.csv');

for ([ '2 0 0 3', 'organisations' ], [ '0 0 2 3', 'again' ]) {
    my $doc = $json->decode(scalar(
        qx('$ctl' org import '$org_file' --json 2> /dev/null)));
    is(counts($doc), $_->[0], $_->[1]);
    like(errors($doc)->{4}, qr/"slug" is not acceptable/, 'a bad slug');
    like(errors($doc)->{5}, qr/settings: this is no JSON/, 'bad JSON');
    like(errors($doc)->{6}, qr/the row has no "slug"/, 'no slug');
}

is($pg->value("SELECT status || (settings ->> 'a') FROM referral.organisations"
              . " WHERE slug = 'north'"), 'disabled1', 'as they were given');

$r = import_text('program', 'acme', "slug,landing_url,status,starts_at\n"
                 . "imp,https://example.com/i,active,2026-01-01\n"
                 . "imp2,ftp://x,,\nimp3,,ended,\n");
is(counts($r), '1 0 0 2', 'programs');
like(errors($r)->{3}, qr/landing_url/, 'a bad URL');
like(errors($r)->{4}, qr/is draft, it can not become ended/, 'a bad status');
is($pg->value("SELECT count(*) FROM referral.programs WHERE slug = 'imp3'"),
   0, 'of which nothing stays');

for (qw(org program)) {
    my $parent = $_ eq 'program' ? 'acme' : '';
    my $csv = qx('$ctl' $_ export $parent);
    is($? >> 8, 0, "$_ export");
    $r = import_text($_, $parent, $csv);
    like(counts($r), qr/^0 0 \d+ 0$/, 'in again, the same') or diag(explain($r));
}

# a code of a referrer

$r = import_text('code', 'q', "external_id,code\n8,\n8,VANITY8\nnobody,\n");
is(counts($r), '2 0 0 1', 'codes of referrers');
like(errors($r)->{4}, qr/no referrer has the external id "nobody"/, 'named');
is(counts(import_text('code', 'q', "external_id,code\n8,\n8,VANITY8\n")),
   '0 0 2 0', 'twice is once');

# out, and in again

my $csv = qx('$ctl' code export p);
is($? >> 8, 0, 'export');
like($csv, qr/^code,external_id,status,campaign,channel,destination,rules,/,
     'names its columns');
like($csv, qr/^BOM,,active,"a, ""b""",/m, 'with quotes where they are needed');

$r = import_text('code', 'p', $csv);
is($r->{status}, 0, 'what comes out goes in');
is(counts($r), '0 0 ' . $pg->value('SELECT count(*) FROM referral.codes WHERE'
   . " program = 'p'") . ' 0', 'and is the same');

my $out = $t->dir() . '/out.csv';
is($t->referralctl('code', 'export', 'p', $out)->{status}, 0, 'to a file');
is($t->read_file('out.csv'), $csv, 'the same');
is($t->referralctl('code', 'export', 'p', '/nonexistent/x')->{status}, 2,
   'which can not be made');
is(scalar(() = glob("$out.*")), 0, 'nothing is left beside it');

is($t->referralctl('referrer', 'export', 'acme', $out)->{status}, 0,
   'referrers');
unlike($t->read_file('out.csv'), qr/Ana/, 'without contacts');
is(counts(import_text('referrer', 'acme', $t->read_file('out.csv'))),
   '0 0 2 0', 'in again');


#
# interrupted in the middle, by SIGINT and by SIGKILL, and run again
#

my $rows = $ENV{ROWS} // 12000;

$t->write_file('big.csv', "code,campaign\n"
               . join('', map { sprintf("BIG%06d,c\n", $_) } 1 .. $rows));


sub imported {
    return $pg->value("SELECT count(*) FROM referral.codes WHERE code LIKE"
                      . " 'BIG%'");
}


sub interrupt {
    my ($signal) = @_;

    my $had = imported();
    my $p = Referral::Test::Process->new(
        name => 'import', log => $t->dir() . "/import.$signal",
        argv => [ $ctl, 'code', 'import', 'big', $t->dir() . '/big.csv' ]);

    $t->wait_for(sub { imported() > $had || !$p->alive() }, 20);
    kill($signal, $p->pid());

    my $status = $p->wait(20);

    return ($status, $p->output());
}


my ($status, $output) = interrupt('INT');
my $n = imported();

is($status >> 8, 1, 'SIGINT');
like($output, qr/interrupted after line (\d+)/, 'says how far it came');
my ($line) = $output =~ /after line (\d+)/;
is($line - 1, $n, 'which is what is there');
is($n % 1000, 0, 'whole transactions');
cmp_ok($n, '<', $rows, 'not all of it');
like($output, qr/run it again to go on/, 'and what to do');

($status, $output) = interrupt('KILL');
cmp_ok(imported(), '>=', $n, 'SIGKILL');
is(imported() % 1000, 0, 'whole transactions');

my $began = time();
$r = $t->referralctl('code', 'import', 'big', $t->dir() . '/big.csv');
is($r->{status}, 0, 'run again');
is(imported(), $rows, 'all is there');
like($r->{output}, qr/ 0 refused/, 'nothing was wrong');
note(sprintf('%d rows in %.1f s', $rows, time() - $began));

# a server that goes away is said, with what to do

$pg->value('CREATE FUNCTION public.cut() RETURNS trigger LANGUAGE plpgsql'
           . " SECURITY DEFINER AS 'BEGIN"
           . ' PERFORM pg_terminate_backend(pg_backend_pid());'
           . " RETURN NULL; END'; CREATE TRIGGER cut AFTER INSERT ON"
           . ' referral.code FOR EACH STATEMENT EXECUTE FUNCTION public.cut();'
           . ' SELECT 1');
$t->write_file('in.csv', "code\nGONE\n");
$r = $t->referralctl('code', 'import', 'p', $file);
is($r->{status}, 3, 'the server goes away');
like($r->{output}, qr/run it again to go on/, 'says what to do');
$pg->value('DROP TRIGGER cut ON referral.code; SELECT 1');
is($t->referralctl('code', 'import', 'p', $file)->{status}, 0, 'done then');

# progress: on a terminal only

$r = $t->run('script', '-qec', "'$ctl' code import big '" . $t->dir()
             . "/big.csv'", '/dev/null');
SKIP: {
    skip('no pseudo-terminal here', 1)
        if $r->{output} =~ /failed to create pseudo-terminal/;
    like($r->{output}, qr/\r\e\[K  [\d,]+ codes  \d+ %  [\d,]+\/s/,
         'progress');
}

unlike($t->referralctl('code', 'import', 'p', $file)->{output}, qr/\e/,
       'not in a log');

$t->done();
