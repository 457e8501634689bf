#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# Each file of conf-examples/ passes nginx -t, is started, and does what its
# first lines say.

use strict;
use warnings;

use File::Basename qw(basename);
use Test::More;

use Referral::Test;


# the places of a real machine become those of the test

sub localized {
    my ($text) = @_;

    for ($text) {
        s/^load_module .*?;\n//m;
        s/^(?:user|pid|error_log)\s.*?;\n//mg;
        s/^http \{\n/http {\n%%HTTP_GLOBALS%%\n/m;
        s/^/%%GLOBALS%%/;

        s{/var/log/nginx/}{%%DIR%%/logs/}g;
        s{/var/lib/referral/journal}{%%DIR%%/journal}g;
        s{/var/lib/GeoIP/}{%%DIR%%/geo/}g;
        s{/var/www/example\.com}{%%DIR%%/html}g;
        s{/etc/nginx/}{%%DIR%%/etc/}g;

        s{unix:/run/redis/redis-server\.sock}{%%REDIS%%}g;
        s{redis://(?:127\.0\.0\.1|10\.0\.0\.5):6379;}{%%REDIS%%;}g;
        s{redis://referral\@127\.0\.0\.1:6379}
         {redis://referral\@127.0.0.1:%%PORT:redis%%}g;

        # a machine that is busy with other tests may take its time

        s{timeout=100ms}{timeout=5s};
        s{(referral_redis\s+%%REDIS%%);}{$1 timeout=5s;};

        s{listen(\s+)80;}{listen$1 127.0.0.1:%%PORT%%;}g;
        s{listen(\s+)443 }{listen$1 127.0.0.1:%%PORT:tls%% }g;
        s{listen(\s+)127\.0\.0\.1:8081;}
         {listen$1 127.0.0.1:%%PORT:status%%;}g;
        s{server 127\.0\.0\.1:8000;}{server 127.0.0.1:%%PORT:app%%;}g;
    }

    return $text;
}


sub prepare {
    my ($file) = @_;

    my $t = Referral::Test->new();

    $t->redis(tcp => 1, args => [ '--user', 'referral', 'on', '>parrot', '~*',
                                  '&*', '+@all' ]);
    for (0, 2) {
        $t->redis()->cmd('SELECT', $_);
        $t->code('SUMMER25', url => 'https://example.com/summer');
        $t->code('BUS2025', url => 'https://example.com/bus#top');
    }

    my $place = { country => { iso_code => 'KE' },
                  city => { names => { en => 'Nairobi' } } };

    $t->write_file('html/index.html',
                   'code=<!--# echo var="referral_code" default="" -->');
    $t->write_file('etc/redis.password', "parrot\n", 0600);
    $t->secret();
    rename($t->dir() . '/secret', $t->dir() . '/etc/referral.secret');

    mkdir($t->dir() . '/geo');
    $t->mmdb('geo/GeoLite2-City.mmdb', { '127.0.0.0/8' => $place,
                                         '203.0.113.0/24' => $place },
             alias => 1);
    $t->mmdb('geo/GeoLite2-ASN.mmdb', { '127.0.0.0/8' =>
             { autonomous_system_number => 64496 } }, type => 'GeoLite2-ASN',
             alias => 1);

    mkdir($t->dir() . '/journal');
    chmod(02770, $t->dir() . '/journal');

    my ($cert, $key) = $t->certificate();
    mkdir($t->dir() . '/etc/tls');
    link($cert, $t->dir() . '/etc/tls/example.com.pem');
    link($key, $t->dir() . '/etc/tls/example.com.key');

    my $conf = localized($t->read_file($file));

    unlike($conf, qr{[ :=](?!/r/|/assets/|/;)/(?:var|etc|run|usr)/},
           'no path of the machine is left');

    my $r = $t->nginx_test(conf => $conf);

    is($r->{status}, 0, 'nginx -t') or diag($r->{output});
    unlike($r->{output}, qr/\[(?:warn|emerg|alert)\]/, 'without a warning');
    is_deeply([ glob($t->dir() . '/journal/*') ], [], 'and leaves nothing');

    $t->nginx(conf => $conf);

    return $t;
}


my %tests = (

    'minimal.conf' => sub {
        my ($t) = @_;

        my $r = $t->get('/r/SUMMER25');

        is($r->status(), 302, 'a short link');
        is($r->header('Location'), 'https://example.com/summer', 'goes there');
        is($r->header('Set-Cookie'), undef, 'no cookie');

        $r = $t->get('/r/NOSUCH');
        is($r->header('Location'), 'https://www.example.com/', 'fallback');

        is(scalar($t->records(2)), 2, 'both are recorded');
    },

    'site.conf' => sub {
        my ($t) = @_;

        my $tls = 'https://www.example.com:' . $t->port('tls');
        my @curl = ('-k', '--connect-to',
                    '::127.0.0.1:' . $t->port('tls'));

        my $app = Referral::Test::Process->new(
            name => 'app', log => $t->dir() . '/app.log', argv => [
                $^X, '-e', app(), $t->port('app') ]);

        $t->wait_for(sub { -e $t->dir() . '/app.log'
                           && $app->output() =~ /ready/ });

        is($t->get('/a?ref=SUMMER25', host => 'www.example.com')
             ->header('Location'), 'https://www.example.com/a?ref=SUMMER25',
           'http to https');

        my $r = $t->curl(@curl, '-H', 'Cookie: consent=yes',
                         "$tls/a?ref=summer25");

        is($r->status(), 200, 'a page');
        like($r->body(), qr/^X-Referral-Code: SUMMER25\r?$/m,
             'the application has the code');
        like($r->body(), qr/^X-Referral-Click: [0-9a-f-]{36}\r?$/m,
             'and the click');
        like($r->header('Set-Cookie') // '', qr/^_ref=.*; Secure/,
             'a secure cookie');

        $r = $t->curl(@curl, "$tls/a?ref=summer25");
        is($r->header('Set-Cookie'), undef, 'none without consent');

        my @records = $t->records(2);
        is(scalar(@records), 2, 'the redirect to https is not recorded');

        $app->stop();
    },

    'full.conf' => sub {
        my ($t) = @_;

        my @host = (host => 'www.example.com');
        my $r = $t->get('/?a=1&via=summer25&b=2', @host,
                        headers => { Cookie => 'consent=yes' });

        is($r->status(), 302, 'stripped');
        is($r->header('Location'), '/?a=1&b=2', 'the parameter');
        like($r->header('Set-Cookie') // '',
             qr/^_ref=[^;]+; .*Domain=example\.com/i, 'the cookie');

        $r = $t->get('/?ref=summer25', @host,
                     headers => { 'User-Agent' => 'Pingdom.com_bot' });
        is($r->status(), 200, 'monitoring is skipped');

        $r = $t->get('/bus?x=1', @host);
        is($r->header('Location'), 'https://example.com/bus?x=1#top',
           'a code from the configuration, arguments passed through');

        $r = $t->get('/SUMMER25', host => 'go.example.com');
        is($r->header('Location'), 'https://example.com/summer',
           'a regular expression');

        my @records = $t->records(3);
        is(scalar(@records), 3, 'recorded');
        is($records[0]{country}, 'KE', 'with the country');
        is($records[0]{asn}, 64496, 'and the network');

        like($t->get('/status?format=prometheus', port => $t->port('status'))->body(),
             qr/^referral_requests_total\{.*verdict="valid".*\} \d+$/m,
             'metrics');
        like($t->read_file('logs/referral.log'),
             qr/ valid redirect \w+ "SUMMER25" /, 'the log has it');
    },

    'behind-proxy.conf' => sub {
        my ($t) = @_;

        # the test is no balancer: it is not believed

        my $r = $t->get('/?ref=summer25', headers => {
            'X-Forwarded-Proto' => 'https',
            'X-Forwarded-For' => '203.0.113.9' });

        is($r->status(), 200, 'a page');
        like($r->header('Set-Cookie') // '', qr/; Secure/,
             'Secure by the variable');

        $r = $t->get('/?ref=summer25', headers => {
            'X-Forwarded-Proto' => 'http' });
        unlike($r->header('Set-Cookie') // '', qr/; Secure/,
               'not Secure by the variable');

        my @records = $t->records(2);
        is($records[0]{ip}, '127.0.0.0/24', 'the address is that of nginx')
            or diag(explain($records[0]));
    },

    'static-site.conf' => sub {
        my ($t) = @_;

        my $r = $t->get('/?ref=summer25');

        is($r->status(), 302, 'stripped');
        is($r->header('Location'), '/', 'the parameter');

        my $cookie = $r->cookie('_ref');
        ok($cookie, 'the cookie');

        $r = $t->get('/', headers => { Cookie => "_ref=$cookie" });
        is($r->body(), 'code=SUMMER25', 'the page shows the code');
    },
);


# answers with the headers that it was sent

sub app {
    return q{
        use IO::Socket::INET;
        $| = 1;
        my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5,
            LocalPort => $ARGV[0], ReuseAddr => 1) or die;
        print "ready\n";
        while (my $c = $s->accept()) {
            my $text = '';
            while (<$c>) { last if /^\r?\n/; $text .= $_; }
            print $c "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n",
                'Content-Length: ', length($text), "\r\n",
                "Connection: close\r\n\r\n$text";
            close($c);
        }
    };
}


my @files = glob(Referral::Test->top() . '/conf-examples/*.conf');

cmp_ok(scalar(@files), '>=', 5, 'there are examples');

for my $file (@files) {
    my $name = basename($file);

    subtest($name => sub {
        my $test = $tests{$name};

        ok($test, 'has a test') or return;

        my $t = prepare(Cwd::abs_path($file));
        $test->($t);
        $t->done();
    });
}

done_testing();
